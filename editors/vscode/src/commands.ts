// The commands of the palette. Those that change the document are the server's own, sent with the
// place they are about; the edit comes back as workspace/applyEdit. Their names differ from the
// server's, which the language client registers itself.

import * as vscode from "vscode";
import type { Range } from "vscode-languageclient/node";
import { offerInstallation } from "./install";
import { type Log, messageOf } from "./log";
import type { Session } from "./session";
import { SECTION } from "./settings";
import type { StatusItem } from "./status";
import type { Updater } from "./update";

export interface Parts {
  readonly context: vscode.ExtensionContext;
  readonly log: Log;
  readonly session: Session;
  readonly status: StatusItem;
  readonly updater: Updater;
}

type Where = (selection: vscode.Selection) => vscode.Range | undefined;

interface Edit {
  readonly title: string;
  readonly server: string;
  readonly where: Where;
}

const atSelection: Where = (selection) => selection;
const inSelectionOrFile: Where = (selection) => (selection.isEmpty ? undefined : selection);

export const EDITS: Readonly<Record<string, Edit>> = {
  "dgemma.fillHere": { title: "filling", server: "dgemma.fill", where: atSelection },
  "dgemma.fillAllHoles": { title: "filling all holes", server: "dgemma.fillAll", where: inSelectionOrFile },
  "dgemma.rewriteSelection": { title: "rewriting", server: "dgemma.rewrite", where: atSelection },
  "dgemma.implementBody": { title: "implementing", server: "dgemma.implement", where: atSelection },
  "dgemma.writeDocstring": { title: "describing", server: "dgemma.docstring", where: atSelection },
};

const CONTEXT_SCHEME = "dgemma-context";

export function registerCommands(parts: Parts): vscode.Disposable[] {
  const context = new ContextDocument();
  const commands: Record<string, () => unknown> = {
    "dgemma.toggleSuggestions": () => toggle(parts),
    "dgemma.restartServer": () => parts.session.restart(),
    "dgemma.showContext": () => showContext(parts, context),
    "dgemma.explainLastSuggestion": () => explainLast(parts),
    "dgemma.showOutput": () => parts.log.show(),
    "dgemma.chooseModel": () => chooseModel(),
    "dgemma.installServer": () => installServer(parts, { wasAsked: true }),
    "dgemma.showMenu": () => showMenu(parts),
  };
  for (const [id, edit] of Object.entries(EDITS)) {
    commands[id] = () => runEdit(parts, edit);
  }
  return [
    vscode.workspace.registerTextDocumentContentProvider(CONTEXT_SCHEME, context),
    ...Object.entries(commands).map(([id, run]) =>
      vscode.commands.registerCommand(id, async () => {
        try {
          await run();
        } catch (error) {
          report(parts, id, error);
        }
      }),
    ),
  ];
}

/** Install a server; if there is one that the extension would replace, that is asked first. */
export async function installServer(parts: Parts, how: { wasAsked: boolean }): Promise<void> {
  if (how.wasAsked && (await parts.updater.isDue())) {
    await updateServer(parts, how);
  } else {
    await installAnew(parts, how);
  }
}

export async function updateServer(parts: Parts, how: { wasAsked: boolean }): Promise<void> {
  const outcome = await parts.updater.offer(how);
  if (outcome === "updated") {
    await parts.session.restart();
  } else if (outcome === "anew") {
    await installAnew(parts, { wasAsked: true });
  }
}

async function installAnew(parts: Parts, how: { wasAsked: boolean }): Promise<void> {
  const { context, log, session, status } = parts;
  const begin = async () => {
    await session.stop(); // it may run in the environment that is made anew
    status.enter({ kind: "installing" });
  };
  const wasInstalling = await offerInstallation(context, log, begin, how);
  if (wasInstalling || !session.isRunning) {
    await (wasInstalling ? session.restart() : session.refresh());
  }
}

async function runEdit(parts: Parts, { title, server, where }: Edit): Promise<void> {
  const editor = vscode.window.activeTextEditor;
  if (!editor || !has(parts, server)) {
    return;
  }
  const { document } = editor;
  const argument = {
    uri: parts.session.uriOf(document),
    range: toJson(where(editor.selection)),
    version: document.version,
  };
  await withLateProgress(title, (token) => parts.session.execute(server, argument, token));
}

/** LSP's range; VS Code's own writes more than that. */
function toJson(range: vscode.Range | undefined): Range | undefined {
  const at = ({ line, character }: vscode.Position) => ({ line, character });
  return range && { start: at(range.start), end: at(range.end) };
}

async function toggle(parts: Parts): Promise<void> {
  const { session, status } = parts;
  if (session.commands.includes("dgemma.toggle")) {
    const isOn = await session.execute<boolean>("dgemma.toggle", {});
    status.update({ isOn });
  } else {
    status.update({ isOn: !status.isOn });
  }
}

async function showContext(parts: Parts, context: ContextDocument): Promise<void> {
  const editor = vscode.window.activeTextEditor;
  if (!editor || !has(parts, "dgemma.context")) {
    return;
  }
  const { line, character } = editor.selection.active;
  const position = { line, character };
  const uri = parts.session.uriOf(editor.document);
  const text = await parts.session.execute<string>("dgemma.context", { uri, position });
  await context.show(text);
}

async function explainLast(parts: Parts): Promise<void> {
  if (!has(parts, "dgemma.explainLast")) {
    return;
  }
  const editor = vscode.window.activeTextEditor;
  const argument = editor ? { uri: parts.session.uriOf(editor.document) } : {};
  // The server shows the reason itself.
  const reason = await parts.session.execute<object | null>("dgemma.explainLast", argument);
  parts.log.info(`the last suggestion: ${JSON.stringify(reason)}`);
}

async function chooseModel(): Promise<void> {
  const configuration = vscode.workspace.getConfiguration(SECTION);
  const present = configuration.get<string>("model", "default");
  const shipped = { label: "default", description: "the small model that comes with the server" };
  const folder = { label: "Checkpoint folder…", description: "for instance diffusiongemma-26B-A4B-it" };
  const other = present === "default" ? [] : [{ label: present, description: "in use" }];
  const choice = await vscode.window.showQuickPick([shipped, ...other, folder], {
    title: `Model (now: ${present})`,
  });
  const model = choice === folder ? await pickFolder() : choice?.label;
  if (model !== undefined) {
    const inWorkspace = configuration.inspect("model")?.workspaceValue !== undefined;
    await configuration.update("model", model, !inWorkspace);
  }
}

async function pickFolder(): Promise<string | undefined> {
  const picked = await vscode.window.showOpenDialog({
    canSelectFolders: true,
    canSelectFiles: false,
    title: "A checkpoint folder, with config.json",
  });
  return picked?.[0]?.fsPath;
}

async function showMenu(parts: Parts): Promise<void> {
  if (parts.status.isMissing) {
    return installServer(parts, { wasAsked: true });
  }
  const toggleLabel = parts.status.isOn ? "Switch suggestions off" : "Switch suggestions on";
  const entries = [
    { label: `$(circle-slash) ${toggleLabel}`, command: "dgemma.toggleSuggestions" },
    { label: "$(question) Explain the last suggestion", command: "dgemma.explainLastSuggestion" },
    { label: "$(eye) Show what the model sees", command: "dgemma.showContext" },
    { label: "$(chip) Choose the model", command: "dgemma.chooseModel" },
    { label: "$(output) Show the output", command: "dgemma.showOutput" },
    { label: "$(debug-restart) Restart the server", command: "dgemma.restartServer" },
  ];
  const choice = await vscode.window.showQuickPick(entries, { title: "dgemma" });
  if (choice) {
    await vscode.commands.executeCommand(choice.command);
  }
}

/** Whether the server knows a command; if not, the user is told what to do. */
function has({ session }: Parts, command: string): boolean {
  if (session.commands.includes(command)) {
    return true;
  }
  const message = session.isRunning
    ? `dgemma: this server does not know ${command}; update it to the version of the extension.`
    : "dgemma: the server is not running; see “dgemma: Show Output”.";
  void vscode.window.showWarningMessage(message);
  return false;
}

/** Progress that can be cancelled, for what is not done at once. */
async function withLateProgress<T>(
  title: string,
  work: (token: vscode.CancellationToken) => Promise<T>,
): Promise<T> {
  const source = new vscode.CancellationTokenSource();
  const done = work(source.token);
  const timer = setTimeout(() => {
    void vscode.window.withProgress(
      { location: vscode.ProgressLocation.Notification, title: `dgemma: ${title}`, cancellable: true },
      (_, token) => {
        token.onCancellationRequested(() => source.cancel());
        return done.then(
          () => undefined,
          () => undefined,
        );
      },
    );
  }, 2000);
  try {
    return await done;
  } finally {
    clearTimeout(timer);
    source.dispose();
  }
}

const CANCELLED = new Set([-32800, -32802]); // by us, by the server

function report({ log }: Parts, id: string, error: unknown): void {
  const code = (error as { code?: unknown }).code;
  if (typeof code === "number" && CANCELLED.has(code)) {
    log.info(`${id} was cancelled`);
    return;
  }
  // The server tells the user itself why a fill failed; two messages for one failure are too many.
  log.error(`${id}: ${messageOf(error)}`);
  if (typeof code !== "number") {
    void vscode.window.showErrorMessage(`dgemma: ${messageOf(error)}`);
  }
}

/** What the model would see, as a document that cannot be changed. */
class ContextDocument implements vscode.TextDocumentContentProvider {
  private readonly changed = new vscode.EventEmitter<vscode.Uri>();
  readonly onDidChange = this.changed.event;
  private readonly uri = vscode.Uri.from({ scheme: CONTEXT_SCHEME, path: "What the model sees" });
  private text = "";

  provideTextDocumentContent(): string {
    return this.text;
  }

  async show(text: string): Promise<void> {
    this.text = text;
    this.changed.fire(this.uri);
    const document = await vscode.workspace.openTextDocument(this.uri);
    await vscode.window.showTextDocument(document, vscode.ViewColumn.Beside, true);
  }
}
