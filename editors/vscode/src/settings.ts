// The user's settings. Those of the server are listed in package.json, generated from its dataclass;
// they are sent only where the user set them, so that the server's own defaults hold otherwise. The
// extension's own are never sent.

import type * as vscode from "vscode";

export const SECTION = "dgemma";

/** What the user can set of the extension itself. */
export interface ClientSettings {
  readonly serverPath: string;
  readonly serverArguments: readonly string[];
  readonly canvas: boolean;
}

/** The part of vscode.WorkspaceConfiguration that is used here. */
export type Configuration = Pick<vscode.WorkspaceConfiguration, "get" | "inspect">;

export function readClientSettings(configuration: Configuration): ClientSettings {
  return {
    serverPath: configuration.get<string>("server.path", "").trim(),
    serverArguments: configuration.get<string[]>("server.arguments", ["serve"]),
    canvas: configuration.get<boolean>("canvas", false),
  };
}

/** The names of the server's settings, from the manifest: the group that is generated. */
export function serverSettingNames(manifest: Manifest): string[] {
  const generated = manifest.contributes.configuration[0];
  return Object.keys(generated?.properties ?? {}).map((key) => key.slice(SECTION.length + 1));
}

export interface Manifest {
  readonly contributes: {
    readonly configuration: readonly { readonly properties: Readonly<Record<string, unknown>> }[];
  };
}

/** What the user set of the server's settings, the most specific value of each. */
export function serverSettings(
  configuration: Configuration,
  names: readonly string[],
): Record<string, unknown> {
  const values: Record<string, unknown> = {};
  for (const name of names) {
    const found = configuration.inspect(name);
    const value = found?.workspaceFolderValue ?? found?.workspaceValue ?? found?.globalValue;
    if (value !== undefined) {
      values[name] = value;
    }
  }
  return values;
}
