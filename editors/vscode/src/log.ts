// The one output channel: what the extension does, what the server logs, and, if asked for, the
// messages between them. The user's code is in the last of these only.

import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import * as vscode from "vscode";

export type Log = vscode.LogOutputChannel;

export function createLog(): Log {
  return vscode.window.createOutputChannel("dgemma", { log: true });
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** A program's lines, at the level that stands in them; without one, information. */
export function logLines(input: Readable, log: Log): void {
  createInterface({ input }).on("line", (line) => {
    if (/\b(ERROR|CRITICAL|Traceback)\b/.test(line)) {
      log.error(line);
    } else if (/\bWARNING\b/.test(line)) {
      log.warn(line);
    } else {
      log.info(line);
    }
  });
}
