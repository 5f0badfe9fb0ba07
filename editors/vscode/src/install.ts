// The environment that this extension makes for the server when there is none: a virtual environment
// in the extension's own storage, made only after the user agreed, and deleted with the extension's
// data. The server comes from the wheel inside the extension, what it needs from the package index
// that the user's pip knows. See update.ts for when the extension brings another wheel.

import { execFile } from "node:child_process";
import { rmSync } from "node:fs";
import { promisify } from "node:util";
import * as vscode from "vscode";
import { managedEnvironment, programIn, shippedBuild, writeNote } from "./installed";
import { type Log, messageOf } from "./log";
import { type Job, pipInstall, run, showFailure, withProgress } from "./pip";
import { activeInterpreter } from "./python";

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

/** Ask, unless the user did not want to be asked; whether a server was installed or chosen. */
export async function offerInstallation(
  context: vscode.ExtensionContext,
  log: Log,
  onStart: () => Promise<void>,
  { wasAsked }: { wasAsked: boolean },
): Promise<boolean> {
  if (!wasAsked && context.globalState.get<boolean>(NEVER_KEY)) {
    return false;
  }
  const isLinux = process.platform === "linux";
  const size = isLinux ? "about 1 GB for the CPU, several with CUDA" : "about 1 GB";
  const isThere = programIn(managedEnvironment(context), "dgemma-lsp") !== undefined;
  const offer = isThere
    ? "a server is installed. Install it anew"
    : "no server was found. Install it";
  const choice = await vscode.window.showInformationMessage(
    `dgemma: ${offer}, with torch, into a Python environment of this extension? ` +
      `This fetches ${size} from your package index.`,
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
    await onStart();
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
    await withProgress((progress, token) =>
      fillEnvironment(context, python, cpu, { log, progress, token }),
    );
    return true;
  } catch (error) {
    rmSync(managedEnvironment(context), { recursive: true, force: true });
    if (!(error instanceof vscode.CancellationError)) {
      void showFailure(log, `the server was not installed: ${messageOf(error)}`);
    }
    return false;
  }
}

async function fillEnvironment(
  context: vscode.ExtensionContext,
  python: string,
  cpu: boolean,
  job: Job,
): Promise<void> {
  const environment = managedEnvironment(context);
  const shipped = await shippedBuild(context);
  job.progress.report({ message: `making an environment with ${python}` });
  await run(python, ["-m", "venv", "--clear", environment], job);
  const inside = programIn(environment, "python");
  if (inside === undefined) {
    throw new Error(`${python} made no environment in ${environment}`);
  }
  await run(inside, pipInstall(cpu, shipped.argument), job);
  writeNote(environment, { ...shipped, cpu });
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
