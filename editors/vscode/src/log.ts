// The one output channel: what the extension does, what the server logs, and, if asked for, the
// messages between them. The user's code is in the last of these only.

import * as vscode from "vscode";

export type Log = vscode.LogOutputChannel;

export function createLog(): Log {
  return vscode.window.createOutputChannel("dgemma", { log: true });
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
