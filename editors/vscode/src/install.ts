// The environment that this extension makes for the server when there is none: a virtual environment
// in the extension's own storage, made only after the user agreed, and deleted with the extension's
// data. The server comes from the wheel inside the extension, what it needs from the package index
// that the user's pip knows.

import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync, readdirSync, rmSync } from "node:fs";
import * as path from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import * as vscode from "vscode";
import { type Log, messageOf } from "./log";
import { activeInterpreter } from "./python";
import { programsOf } from "./server";

const CPU_INDEX = "https://download.pytorch.org/whl/cpu";

const INSTALL = "Install";
const INSTALL_CPU = "Install for CPU";
const CHOOSE = "Choose…";
const NEVER = "Never";
const NEVER_KEY = "dgemma.neverAskToInstall";

/** Any Python of 3.10 to 3.13. */
export function isUsablePython(version: string): boolean {
  const match = /^3\.(\d+)$/.exec(version.trim());
  return match !== null && Number(match[1]) >= 10 && Number(match[1]) <= 13;
}

/** What pip is told to install; the wheel of this extension, else the released package. */
export function requirement(wheels: readonly string[], version: string): string {
  return wheels.find((name) => name.endsWith(".whl")) ?? `dgemma-lsp==${version}`;
}

export function managedEnvironment(context: vscode.ExtensionContext): string {
  return path.join(context.globalStorageUri.fsPath, "server");
}

/** Ask, unless the user did not want to be asked; whether a server was installed or chosen. */
export async function offerInstallation(
  context: vscode.ExtensionContext,
  log: Log,
  onStart: () => void,
  { wasAsked }: { wasAsked: boolean },
): Promise<boolean> {
  if (!wasAsked && context.globalState.get<boolean>(NEVER_KEY)) {
    return false;
  }
  const isLinux = process.platform === "linux";
  const size = isLinux ? "about 1 GB for the CPU, several with CUDA" : "about 1 GB";
  const choice = await vscode.window.showInformationMessage(
    "dgemma: no server was found. Install it, with torch, into a Python environment of this " +
      `extension? This fetches ${size} from your package index.`,
    ...(isLinux ? [INSTALL_CPU] : []),
    INSTALL,
    CHOOSE,
    ...(wasAsked ? [] : [NEVER]),
  );
  if (choice === NEVER) {
    await context.globalState.update(NEVER_KEY, true);
  } else if (choice === CHOOSE) {
    return choosePath();
  } else if (choice === INSTALL || choice === INSTALL_CPU) {
    onStart();
    return install(context, log, choice === INSTALL_CPU);
  }
  return false;
}

async function choosePath(): Promise<boolean> {
  const picked = await vscode.window.showOpenDialog({ title: "The program dgemma-lsp" });
  const file = picked?.[0]?.fsPath;
  if (file) {
    await vscode.workspace
      .getConfiguration("dgemma")
      .update("server.path", file, vscode.ConfigurationTarget.Global);
  }
  return false; // the changed setting starts it
}

async function install(context: vscode.ExtensionContext, log: Log, cpu: boolean): Promise<boolean> {
  const python = await findPython(log);
  if (python === undefined) {
    void vscode.window.showErrorMessage(
      "dgemma: no Python of 3.10 to 3.13 was found. Install one, or choose an interpreter in the " +
        "Python extension, and run “dgemma: Install the Server” again.",
    );
    return false;
  }
  try {
    await vscode.window.withProgress(
      { location: vscode.ProgressLocation.Notification, title: "dgemma", cancellable: true },
      (progress, token) => fillEnvironment(context, log, python, cpu, progress, token),
    );
    return true;
  } catch (error) {
    rmSync(managedEnvironment(context), { recursive: true, force: true });
    if (!(error instanceof vscode.CancellationError)) {
      log.error(`the server was not installed: ${messageOf(error)}`);
      const show = "Show Output";
      const message = `dgemma: the server was not installed: ${messageOf(error)}`;
      void vscode.window.showErrorMessage(message, show).then((choice) => {
        if (choice === show) {
          log.show();
        }
      });
    }
    return false;
  }
}

async function fillEnvironment(
  context: vscode.ExtensionContext,
  log: Log,
  python: string,
  cpu: boolean,
  progress: vscode.Progress<{ message?: string }>,
  token: vscode.CancellationToken,
): Promise<void> {
  const environment = managedEnvironment(context);
  const run = (command: string, args: string[]) =>
    runLogged(command, args, log, token, (line) => {
      const message = /^(Collecting|Downloading|Installing|Processing) .*/.exec(line.trim())?.[0];
      if (message) {
        progress.report({ message: message.slice(0, 80) });
      }
    });
  progress.report({ message: `making an environment with ${python}` });
  await run(python, ["-m", "venv", "--clear", environment]);
  const inside = programsOf(environment, "python", process.platform).find(existsSync);
  if (inside === undefined) {
    throw new Error(`${python} made no environment in ${environment}`);
  }
  await run(inside, [
    ...["-m", "pip", "install", "--disable-pip-version-check", "--no-input"],
    ...(cpu ? ["--extra-index-url", CPU_INDEX] : []),
    shippedRequirement(context),
  ]);
}

function shippedRequirement(context: vscode.ExtensionContext): string {
  const folder = path.join(context.extensionPath, "server");
  const wheels = existsSync(folder) ? readdirSync(folder).map((name) => path.join(folder, name)) : [];
  const manifest = context.extension.packageJSON as { version: string };
  return requirement(wheels, manifest.version);
}

async function findPython(log: Log): Promise<string | undefined> {
  const names = ["python3", "python", "python3.13", "python3.12", "python3.11", "python3.10"];
  const chosen = await activeInterpreter(log);
  const code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])";
  for (const command of chosen === undefined ? names : [chosen, ...names]) {
    try {
      const { stdout } = await promisify(execFile)(command, ["-c", code], { timeout: 10_000 });
      if (isUsablePython(stdout)) {
        return command;
      }
    } catch {
      // not there, or it cannot make environments: the next one
    }
  }
  return undefined;
}

function runLogged(
  command: string,
  args: string[],
  log: Log,
  token: vscode.CancellationToken,
  onLine: (line: string) => void,
): Promise<void> {
  log.info([command, ...args].join(" "));
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  const cancelled = token.onCancellationRequested(() => child.kill());
  let lastError = "";
  follow(child, (line) => {
    log.info(line);
    lastError = line.startsWith("ERROR") ? line : lastError;
    onLine(line);
  });
  return new Promise<void>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => {
      if (token.isCancellationRequested) {
        reject(new vscode.CancellationError());
      } else if (code === 0) {
        resolve();
      } else {
        reject(new Error(lastError || `${command} ended with status ${code}`));
      }
    });
  }).finally(() => cancelled.dispose());
}

function follow(child: ChildProcess, onLine: (line: string) => void): void {
  for (const stream of [child.stdout, child.stderr]) {
    if (stream) {
      createInterface({ input: stream }).on("line", onLine);
    }
  }
}
