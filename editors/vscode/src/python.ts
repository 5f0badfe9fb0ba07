// The Python that the user works with, as the Python extension and the settings know it.

import * as vscode from "vscode";
import { type Log, messageOf } from "./log";

/** The part of the Python extension's interface that is used here. */
interface PythonExtension {
  readonly environments?: {
    getActiveEnvironmentPath(resource?: vscode.Uri): { readonly path: string };
    readonly onDidChangeActiveEnvironmentPath: vscode.Event<unknown>;
  };
}

const PYTHON_EXTENSION = "ms-python.python";

/** The interpreter that is active in the first workspace folder; undefined if none was chosen. */
export async function activeInterpreter(log: Log): Promise<string | undefined> {
  if (!vscode.workspace.isTrusted) {
    return undefined;
  }
  const folder = vscode.workspace.workspaceFolders?.[0]?.uri;
  const python = await pythonExtension(log);
  const chosen = python?.environments?.getActiveEnvironmentPath(folder).path;
  const configured = vscode.workspace
    .getConfiguration("python", folder ?? null)
    .get<string>("defaultInterpreterPath");
  // "python" alone is what both say when nothing was chosen.
  return [chosen, configured].find((path) => path !== undefined && /[\\/]/.test(path));
}

export async function onInterpreterChange(log: Log, listener: () => void): Promise<vscode.Disposable> {
  const python = await pythonExtension(log);
  return (
    python?.environments?.onDidChangeActiveEnvironmentPath(listener) ??
    new vscode.Disposable(() => undefined)
  );
}

async function pythonExtension(log: Log): Promise<PythonExtension | undefined> {
  const extension = vscode.extensions.getExtension<PythonExtension>(PYTHON_EXTENSION);
  try {
    return await extension?.activate();
  } catch (error) {
    log.warn(`the Python extension cannot be asked: ${messageOf(error)}`);
    return undefined;
  }
}
