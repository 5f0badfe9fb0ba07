"""From named packages to a packed checkpoint: corpus, tokenizer, trainer, packer, evaluation.

Read `README.md` for the commands; the data flows `corpus -> tokenizer -> rows -> train -> pack`.
"""
