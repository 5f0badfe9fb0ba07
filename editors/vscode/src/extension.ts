// What VS Code calls: makes the parts, connects them, and follows what the user changes. Read
// session.ts next, and server.ts for which server is started.

import * as vscode from "vscode";
import { Canvas } from "./canvas";
import { installServer, type Parts, registerCommands, updateServer } from "./commands";
import { createLog, messageOf } from "./log";
import { onInterpreterChange } from "./python";
import { Session } from "./session";
import { StatusItem } from "./status";
import { Updater } from "./update";

let session: Session | undefined;

export async function activate(context: vscode.ExtensionContext): Promise<void> {
  const log = createLog();
  const status = new StatusItem();
  const canvas = new Canvas();
  // Not awaited: a question may stand for ever.
  const begin = (work: Promise<void>) =>
    void work.catch((error: unknown) => log.error(messageOf(error)));
  session = new Session(context, log, status, canvas, (found) => {
    if (found.kind === "missing") {
      begin(installServer(parts, { wasAsked: false }));
    } else if (found.kind === "misconfigured") {
      void vscode.window.showErrorMessage(`dgemma: ${found.message} Correct it or remove it.`);
    } else if (found.source === "managed") {
      begin(updateServer(parts, { wasAsked: false }));
    }
  });
  const parts: Parts = { context, log, session, status, updater: new Updater(context, log) };
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
