// What VS Code calls: makes the parts, connects them, and follows what the user changes. Read
// session.ts next, and server.ts for which server is started.

import * as vscode from "vscode";
import { Canvas } from "./canvas";
import { installServer, type Parts, registerCommands } from "./commands";
import { createLog } from "./log";
import { onInterpreterChange } from "./python";
import { Session } from "./session";
import { StatusItem } from "./status";

let session: Session | undefined;

export async function activate(context: vscode.ExtensionContext): Promise<void> {
  const log = createLog();
  const status = new StatusItem();
  const canvas = new Canvas();
  session = new Session(context, log, status, canvas, (problem) => {
    if (problem.kind === "missing") {
      // Not awaited: the question may stand for ever.
      void installServer(parts, { wasAsked: false });
    } else {
      void vscode.window.showErrorMessage(`dgemma: ${problem.message} Correct it or remove it.`);
    }
  });
  const parts: Parts = { context, log, session, status };
  const refresh = () => void session?.refresh();
  context.subscriptions.push(
    log,
    status,
    canvas,
    session,
    ...registerCommands(parts),
    vscode.workspace.onDidChangeConfiguration((event) => {
      if (["server", "canvas"].some((name) => event.affectsConfiguration(`dgemma.${name}`))) {
        refresh();
      }
    }),
    vscode.workspace.onDidChangeWorkspaceFolders(refresh),
    vscode.workspace.onDidGrantWorkspaceTrust(refresh),
    await onInterpreterChange(log, refresh),
  );
  await session.restart();
}

export async function deactivate(): Promise<void> {
  await session?.stop();
}
