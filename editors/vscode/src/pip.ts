// Programs that are run for the managed environment, pip above all. Their lines go to the output, and
// what a user wants to know of them to the progress.

import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import * as vscode from "vscode";
import type { Log } from "./log";

const CPU_INDEX = "https://download.pytorch.org/whl/cpu";

const SHOW = "Show Output";

export type Progress = vscode.Progress<{ message?: string }>;

export interface Job {
  readonly log: Log;
  readonly progress: Progress;
  readonly token: vscode.CancellationToken;
  readonly onLine?: (line: string) => void;
}

/** The arguments of a Python to install something. */
export function pipInstall(cpu: boolean, ...what: string[]): string[] {
  return [
    ...["-m", "pip", "install", "--disable-pip-version-check", "--no-input"],
    ...(cpu ? ["--extra-index-url", CPU_INDEX] : []),
    ...what,
  ];
}

/** Rejects with pip's own error, or with CancellationError. */
export function run(command: string, args: readonly string[], job: Job): Promise<void> {
  const { log, token } = job;
  log.info([command, ...args].join(" "));
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  const cancelled = token.onCancellationRequested(() => child.kill());
  let lastError = "";
  follow(child, (line) => {
    log.info(line);
    lastError = line.startsWith("ERROR") ? line : lastError;
    const message = /^(Collecting|Downloading|Installing|Processing) .*/.exec(line.trim())?.[0];
    if (message) {
      job.progress.report({ message: message.slice(0, 80) });
    }
    job.onLine?.(line);
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

export async function withProgress(
  work: (progress: Progress, token: vscode.CancellationToken) => Promise<void>,
): Promise<void> {
  const location = vscode.ProgressLocation.Notification;
  await vscode.window.withProgress({ location, title: "dgemma", cancellable: true }, work);
}

/** Say what went wrong, with the output at hand; the button that was chosen, if it is another. */
export async function showFailure(
  log: Log,
  message: string,
  ...buttons: string[]
): Promise<string | undefined> {
  log.error(message);
  const choice = await vscode.window.showErrorMessage(`dgemma: ${message}`, ...buttons, SHOW);
  if (choice !== SHOW) {
    return choice;
  }
  log.show();
  return undefined;
}

function follow(child: ChildProcess, onLine: (line: string) => void): void {
  for (const stream of [child.stdout, child.stderr]) {
    if (stream) {
      createInterface({ input: stream }).on("line", onLine);
    }
  }
}
