" dgemma-lsp in Vim with vim-lsp (prabirshrestha/vim-lsp): source this file from your vimrc.
" :LspCodeAction lists the code actions; the completion menu has an entry that fills.
" Not tested.

augroup dgemma
  autocmd!
  autocmd User lsp_setup call lsp#register_server({
  \   'name': 'dgemma',
  \   'cmd': {server_info -> ['dgemma-lsp', 'serve']},
  \   'allowlist': ['python'],
  \   'initialization_options': {'completion': 'on'},
  \ })
augroup END
