// Which server is started. The order is written here, and only here:
//
//   1. `dgemma.server.path`. If it is set it is the one, or an error; nothing else is tried.
//   2. the active Python environment: the interpreter chosen in the Python extension, else .venv or
//      venv in a workspace folder, the first one that has the server. Not in a workspace that is not
//      trusted: its files may come from anybody.
//   3. `dgemma-lsp` on PATH.
//   4. the environment that this extension made (install.ts).
//
// Nothing here knows VS Code or touches a file: the facts are handed in.

import * as path from "node:path";

export type Source = "setting" | "environment" | "path" | "managed";

export interface Server {
  readonly kind: "server";
  readonly source: Source;
  readonly command: string;
}

/** What stands in the setting is not there. */
export interface Misconfigured {
  readonly kind: "misconfigured";
  readonly message: string;
}

export interface Missing {
  readonly kind: "missing";
}

export interface Facts {
  /** `dgemma.server.path`; empty if it is not set. */
  readonly configured: string;
  /** The interpreter chosen in the Python extension. */
  readonly interpreter: string | undefined;
  readonly folders: readonly string[];
  readonly isTrusted: boolean;
  /** The folder of the environment that this extension makes. */
  readonly managed: string;
  readonly home: string;
  /** PATH, as it is written. */
  readonly searchPath: string;
  readonly platform: NodeJS.Platform;
  readonly isExecutable: (file: string) => boolean;
}

export function resolveServer(facts: Facts): Server | Misconfigured | Missing {
  if (facts.configured) {
    return fromSetting(facts);
  }
  for (const [source, file] of candidates(facts)) {
    if (facts.isExecutable(file)) {
      return { kind: "server", source, command: file };
    }
  }
  return { kind: "missing" };
}

/** The programs of an environment, in the order in which they are looked for. */
export function programsOf(
  environment: string,
  name: string,
  platform: NodeJS.Platform,
): string[] {
  const at = pathOf(platform);
  return platform === "win32"
    ? [at.join(environment, "Scripts", `${name}.exe`), at.join(environment, `${name}.exe`)]
    : [at.join(environment, "bin", name)];
}

function fromSetting(facts: Facts): Server | Misconfigured {
  const wanted = expand(facts.configured, facts);
  const isName = !/[\\/]/.test(wanted);
  const places = isName
    ? onPath(wanted, facts)
    : [pathOf(facts.platform).resolve(facts.folders[0] ?? facts.home, wanted)];
  const command = places.find(facts.isExecutable);
  if (command === undefined) {
    const where = isName ? "is not on PATH" : `is not a program (${places[0]})`;
    return {
      kind: "misconfigured",
      message: `The setting dgemma.server.path is "${facts.configured}", which ${where}.`,
    };
  }
  return { kind: "server", source: "setting", command };
}

function* candidates(facts: Facts): Generator<[Source, string]> {
  if (facts.isTrusted) {
    for (const environment of environments(facts)) {
      for (const file of programsOf(environment, "dgemma-lsp", facts.platform)) {
        yield ["environment", file];
      }
    }
  }
  for (const file of onPath("dgemma-lsp", facts)) {
    yield ["path", file];
  }
  for (const file of programsOf(facts.managed, "dgemma-lsp", facts.platform)) {
    yield ["managed", file];
  }
}

function* environments(facts: Facts): Generator<string> {
  const at = pathOf(facts.platform);
  if (facts.interpreter) {
    const folder = at.dirname(facts.interpreter);
    const isNested = ["bin", "Scripts"].includes(at.basename(folder));
    yield isNested ? at.dirname(folder) : folder;
  }
  for (const folder of facts.folders) {
    yield at.join(folder, ".venv");
    yield at.join(folder, "venv");
  }
}

function onPath(name: string, facts: Facts): string[] {
  const at = pathOf(facts.platform);
  const isBare = facts.platform === "win32" && !/\.\w+$/.test(name);
  return facts.searchPath
    .split(at.delimiter)
    .filter((folder) => at.isAbsolute(folder)) // a relative one would mean the workspace
    .map((folder) => at.join(folder, isBare ? `${name}.exe` : name));
}

function expand(value: string, facts: Facts): string {
  return value
    .replace(/^~(?=$|[\\/])/, facts.home)
    .replaceAll("${workspaceFolder}", facts.folders[0] ?? facts.home);
}

function pathOf(platform: NodeJS.Platform): path.PlatformPath {
  return platform === "win32" ? path.win32 : path.posix;
}
