//! Tells Zed how to start dgemma-lsp. Not tested, and not compiled by this project.

use zed_extension_api::{self as zed, serde_json, Command, LanguageServerId, Result, Worktree};

struct Dgemma;

impl zed::Extension for Dgemma {
    fn new() -> Self {
        Dgemma
    }

    fn language_server_command(&mut self, _: &LanguageServerId, worktree: &Worktree) -> Result<Command> {
        let command = worktree
            .which("dgemma-lsp")
            .ok_or("dgemma-lsp is not on PATH: run `pipx install dgemma-lsp`")?;
        Ok(Command { command, args: vec!["serve".into()], env: worktree.shell_env() })
    }

    // Zed shows no inline completions of language servers: the completion menu has an entry instead.
    fn language_server_initialization_options(
        &mut self,
        _: &LanguageServerId,
        _: &Worktree,
    ) -> Result<Option<serde_json::Value>> {
        Ok(Some(serde_json::json!({ "completion": "on" })))
    }
}

zed::register_extension!(Dgemma);
