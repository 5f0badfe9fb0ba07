// One server for the window: found, started, stopped, started again when what it was started with
// changes. What it says goes to the status bar and the canvas.

import { accessSync, constants, statSync } from "node:fs";
import * as os from "node:os";
import * as vscode from "vscode";
import {
  type ClientCapabilities,
  ExecuteCommandRequest,
  type FeatureState,
  LanguageClient,
  RevealOutputChannelOn,
  State,
  type StaticFeature,
} from "vscode-languageclient/node";
import type { Canvas } from "./canvas";
import { managedEnvironment } from "./installed";
import { type Log, logLines, messageOf } from "./log";
import { CANVAS, type CanvasStep, type ServerStatus, STATUS } from "./protocol";
import { activeInterpreter } from "./python";
import { type Misconfigured, type Missing, resolveServer, type Server } from "./server";
import {
  type ClientSettings,
  type Manifest,
  readClientSettings,
  SECTION,
  serverSettingNames,
  serverSettings,
} from "./settings";
import type { StatusItem } from "./status";

// The languages whose grammars the server has; package.json is activated by the same.
const LANGUAGES = [
  "python",
  "javascript",
  "javascriptreact",
  "typescript",
  "typescriptreact",
  "go",
  "rust",
  "c",
  "cpp",
  "java",
  "ruby",
  "lua",
  "shellscript",
  "json",
  "jsonc",
  "yaml",
  "toml",
  "html",
  "css",
  "markdown",
];
const DOCUMENTS = LANGUAGES.flatMap((language) =>
  ["file", "untitled", "vscode-notebook-cell"].map((scheme) => ({ language, scheme })),
);

export class Session implements vscode.Disposable {
  private client: LanguageClient | undefined;
  private startedWith = "";
  private work: Promise<void> = Promise.resolve();
  private readonly names: readonly string[];

  constructor(
    private readonly context: vscode.ExtensionContext,
    private readonly log: Log,
    private readonly status: StatusItem,
    private readonly canvas: Canvas,
    private readonly onFound: (found: Server | Missing | Misconfigured) => void,
  ) {
    this.names = serverSettingNames(context.extension.packageJSON as Manifest);
  }

  /** Start the server, or start it anew. */
  restart(): Promise<void> {
    return this.next(async () => {
      await this.end();
      await this.begin();
    });
  }

  /** As restart, if another server would be started, or the same one otherwise. */
  refresh(): Promise<void> {
    return this.next(async () => {
      const { key } = await this.wanted();
      if (key !== this.startedWith) {
        await this.end();
        await this.begin();
      }
    });
  }

  stop(): Promise<void> {
    return this.next(() => this.end());
  }

  dispose(): void {
    void this.stop();
  }

  get commands(): readonly string[] {
    return this.client?.initializeResult?.capabilities.executeCommandProvider?.commands ?? [];
  }

  get isRunning(): boolean {
    return this.client?.state === State.Running;
  }

  /** Have the server execute a command of its own. */
  async execute<T>(command: string, argument: object, token?: vscode.CancellationToken): Promise<T> {
    if (!this.client) {
      throw new Error("The server is not running.");
    }
    const params = { command, arguments: [argument] };
    return (await this.client.sendRequest(ExecuteCommandRequest.type, params, token)) as T;
  }

  uriOf(document: vscode.TextDocument): string {
    return this.client?.code2ProtocolConverter.asUri(document.uri) ?? document.uri.toString();
  }

  private next(step: () => Promise<void>): Promise<void> {
    this.work = this.work.then(step, step);
    return this.work;
  }

  private async wanted(): Promise<{
    settings: ClientSettings;
    found: Server | Missing | Misconfigured;
    key: string;
  }> {
    const settings = readClientSettings(vscode.workspace.getConfiguration(SECTION));
    const folders = vscode.workspace.workspaceFolders ?? [];
    const found = resolveServer({
      configured: settings.serverPath,
      interpreter: await activeInterpreter(this.log),
      folders: folders.filter(({ uri }) => uri.scheme === "file").map(({ uri }) => uri.fsPath),
      isTrusted: vscode.workspace.isTrusted,
      managed: managedEnvironment(this.context),
      home: os.homedir(),
      searchPath: process.env["PATH"] ?? process.env["Path"] ?? "",
      platform: process.platform,
      isExecutable,
    });
    return { settings, found, key: JSON.stringify([settings, found]) };
  }

  private async begin(): Promise<void> {
    const { settings, found, key } = await this.wanted();
    this.startedWith = key;
    this.onFound(found);
    if (found.kind !== "server") {
      const isMissing = found.kind === "missing";
      this.status.enter(isMissing ? found : { kind: "stopped", message: found.message });
      this.log.warn(isMissing ? "no server was found" : found.message);
      return;
    }
    this.log.info(`starting ${found.command} (found by: ${found.source})`);
    this.status.enter({ kind: "starting" });
    const client = this.build(found, settings);
    this.client = client;
    try {
      await client.start();
    } catch (error) {
      this.log.error(`the server did not start: ${messageOf(error)}`);
      this.status.enter({ kind: "stopped", message: `The server did not start: ${messageOf(error)}` });
    }
  }

  private async end(): Promise<void> {
    const client = this.client;
    this.client = undefined;
    this.startedWith = "";
    this.canvas.clear();
    try {
      await client?.dispose();
    } catch (error) {
      this.log.debug(`the server did not stop in order: ${messageOf(error)}`);
    }
  }

  private build(server: Server, settings: ClientSettings): LanguageClient {
    const client = new LanguageClient(
      SECTION,
      "dgemma",
      { command: server.command, args: [...settings.serverArguments] },
      {
        documentSelector: DOCUMENTS,
        outputChannel: this.log,
        stdioOptions: { stdout: logLines, stderr: logLines },
        revealOutputChannelOn: RevealOutputChannelOn.Never,
        initializationOptions: () => this.settings(),
        middleware: {
          provideInlineCompletionItems: (document, position, context, token, next) =>
            this.timed(async () => await next(document, position, context, token)),
          workspace: {
            configuration: async (params, token, next) => {
              const isOurs = params.items.every((item) => item.section === SECTION);
              return isOurs ? params.items.map(() => this.settings()) : await next(params, token);
            },
          },
        },
      },
    );
    client.registerFeature(optIn(settings.canvas));
    client.onDidChangeState(({ newState }) => {
      if (this.client === client) {
        this.follow(newState);
      }
    });
    client.onNotification(STATUS, (status: ServerStatus) => this.status.update({ status }));
    client.onNotification(CANVAS, (step: CanvasStep) => this.canvas.show(step));
    return client;
  }

  private follow(state: State): void {
    if (state === State.Running) {
      this.status.enter({ kind: "running" });
    } else if (state === State.Starting) {
      this.status.enter({ kind: "starting" });
    } else {
      this.canvas.clear();
      this.status.enter({ kind: "stopped", message: "The server stopped. Click for its output." });
    }
  }

  private settings(): Record<string, unknown> {
    return serverSettings(vscode.workspace.getConfiguration(SECTION), this.names);
  }

  private async timed<T>(work: () => Promise<T>): Promise<T | undefined> {
    if (!this.status.isOn) {
      return undefined;
    }
    const start = performance.now();
    const result = await work();
    if (result) {
      this.status.update({ latencyMs: performance.now() - start });
    }
    return result;
  }
}

/** Tells the server what we show of what it sends beyond LSP. */
function optIn(canvas: boolean): StaticFeature {
  return {
    fillClientCapabilities(capabilities: ClientCapabilities): void {
      const others = capabilities.experimental as object | undefined;
      capabilities.experimental = { ...others, dgemma: { status: true, canvas } };
    },
    initialize(): void {},
    getState: (): FeatureState => ({ kind: "static" }),
    clear(): void {},
  };
}

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK);
    return statSync(file).isFile();
  } catch {
    return false;
  }
}
