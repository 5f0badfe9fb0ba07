// Another server into the managed environment, when the extension ships another than is there. Asked
// for once a session and never done without consent; the old server runs until the new one is there.
// See installed.ts for what is compared.

import { execFile } from "node:child_process";
import { promisify } from "node:util";
import * as vscode from "vscode";
import {
  isStale,
  managedEnvironment,
  programIn,
  readNote,
  type Shipped,
  shippedBuild,
  writeNote,
} from "./installed";
import { type Log, messageOf } from "./log";
import { type Job, pipInstall, type Progress, run, showFailure, withProgress } from "./pip";

const UPDATE = "Update";
const LATER = "Later";
const ANEW = "Install Anew…";

/** After "anew" the user wants the environment made again, from nothing. */
export type Outcome = "updated" | "unchanged" | "anew";

export class Updater {
  private wasOffered = false;
  private isUpdating = false;

  constructor(
    private readonly context: vscode.ExtensionContext,
    private readonly log: Log,
  ) {}

  /** Whether there is a managed server, and the extension ships another. */
  async isDue(): Promise<boolean> {
    const environment = managedEnvironment(this.context);
    return (
      programIn(environment, "dgemma-lsp") !== undefined &&
      isStale(readNote(environment), await shippedBuild(this.context))
    );
  }

  /** Ask whether to update what is due, and do it. */
  async offer({ wasAsked }: { wasAsked: boolean }): Promise<Outcome> {
    if (this.isUpdating || (this.wasOffered && !wasAsked) || !(await this.isDue())) {
      return "unchanged";
    }
    this.wasOffered = true;
    const choice = await vscode.window.showInformationMessage(
      "dgemma: the installed server is not the one that this version of the extension brings. " +
        "Update it?",
      UPDATE,
      LATER,
      ...(wasAsked ? [ANEW] : []),
    );
    if (choice === ANEW) {
      return "anew";
    }
    return choice === UPDATE && !this.isUpdating ? this.update() : "unchanged";
  }

  private async update(): Promise<Outcome> {
    const attempt = new Attempt(managedEnvironment(this.context), this.log);
    this.isUpdating = true;
    let problem: unknown;
    try {
      // Another window may have done it while the question stood.
      if (await this.isDue()) {
        const shipped = await shippedBuild(this.context);
        await withProgress((progress, token) => attempt.run(shipped, progress, token));
        this.log.info(`the server was updated to ${shipped.requirement}`);
      }
      return "updated";
    } catch (error) {
      problem = error;
    } finally {
      this.isUpdating = false;
    }
    return this.explain(problem, attempt);
  }

  private async explain(error: unknown, attempt: Attempt): Promise<Outcome> {
    if (error instanceof vscode.CancellationError && !attempt.hasChanged) {
      this.log.info("the update of the server was cancelled");
      return "unchanged";
    }
    const message = `the server was not updated: ${messageOf(error)}`;
    if (await isIntact(attempt.environment, this.log)) {
      void showFailure(this.log, `${message}. The one that is installed works on.`);
      return "unchanged";
    }
    const advice = "Its environment is not complete, and the server may not start again";
    const choice = await showFailure(this.log, `${message}. ${advice}.`, ANEW);
    return choice === ANEW ? "anew" : "unchanged";
  }
}

/** One update of an environment; it can be cancelled until pip begins to change something. */
class Attempt {
  hasChanged = false;

  constructor(
    readonly environment: string,
    private readonly log: Log,
  ) {}

  async run(shipped: Shipped, progress: Progress, token: vscode.CancellationToken): Promise<void> {
    const python = programIn(this.environment, "python");
    if (python === undefined) {
      throw new Error(`there is no Python in ${this.environment}`);
    }
    progress.report({ message: "updating the server" });
    const cpu = readNote(this.environment)?.cpu ?? (await hasTorchForCpu(python));
    const source = new vscode.CancellationTokenSource();
    const cancelled = token.onCancellationRequested(() => this.hasChanged || source.cancel());
    const onLine = (line: string) => {
      if (line.startsWith("Installing collected packages") && !this.hasChanged) {
        this.hasChanged = true;
        writeNote(this.environment, { requirement: "", sha256: null, cpu });
        progress.report({ message: "installing; this cannot be cancelled" });
      }
    };
    const job: Job = { log: this.log, progress, token: source.token, onLine };
    try {
      // What the server needs, and a server of another version; torch stays if it still will do.
      await run(python, pipInstall(cpu, "--upgrade", shipped.argument), job);
      // pip leaves alone what has the same version, though it may be another build.
      const again = ["--force-reinstall", "--no-deps", shipped.argument];
      await run(python, pipInstall(cpu, ...again), job);
    } finally {
      cancelled.dispose();
      source.dispose();
    }
    writeNote(this.environment, { ...shipped, cpu });
  }
}

/** For an environment of before there were notes. */
async function hasTorchForCpu(python: string): Promise<boolean> {
  const code = "import importlib.metadata as m; print(m.version('torch'))";
  try {
    const { stdout } = await promisify(execFile)(python, ["-c", code], { timeout: 30_000 });
    return stdout.trim().endsWith("+cpu");
  } catch {
    return false; // no torch, or none that can be asked
  }
}

/** Whether the server answers, and nothing that it needs is missing. */
async function isIntact(environment: string, log: Log): Promise<boolean> {
  const program = programIn(environment, "dgemma-lsp");
  const python = programIn(environment, "python");
  if (program === undefined || python === undefined) {
    return false;
  }
  try {
    await promisify(execFile)(program, ["--version"], { timeout: 60_000 });
    await promisify(execFile)(python, ["-m", "pip", "check"], { timeout: 60_000 });
    return true;
  } catch (error) {
    log.error(`the environment is not complete: ${messageOf(error)}`);
    return false;
  }
}
