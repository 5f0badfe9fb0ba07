import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { EDITS } from "../src/commands";
import {
  type Configuration,
  type Manifest,
  readClientSettings,
  serverSettingNames,
  serverSettings,
} from "../src/settings";

interface ManifestOfTest extends Manifest {
  readonly contributes: Manifest["contributes"] & {
    readonly commands: readonly { readonly command: string }[];
  };
}

const manifest = JSON.parse(readFileSync("package.json", "utf8")) as ManifestOfTest;

type Levels = Partial<Record<"globalValue" | "workspaceValue" | "workspaceFolderValue", unknown>>;

function configuration(values: Record<string, Levels>): Configuration {
  return {
    get: <T>(name: string, fallback?: T) => (values[name]?.globalValue ?? fallback) as T,
    inspect: <T>(name: string) => ({ key: name, defaultValue: "a default", ...values[name] }) as
      | (Levels & { key: string; defaultValue?: T })
      | undefined,
  } as Configuration;
}

test("only what the user set is sent, and the most specific of it", () => {
  const sent = serverSettings(
    configuration({
      seed: { globalValue: 1, workspaceValue: 2, workspaceFolderValue: 3 },
      maxTokens: { globalValue: 16, workspaceValue: 32 },
      minConfidence: { globalValue: null },
      decoder: {},
    }),
    ["seed", "maxTokens", "minConfidence", "decoder"],
  );
  assert.deepEqual(sent, { seed: 3, maxTokens: 32, minConfidence: null });
});

test("the extension's own settings are not among the server's", () => {
  const names = serverSettingNames(manifest);
  assert.ok(names.includes("model"));
  assert.ok(names.includes("minConfidence"));
  assert.deepEqual(names.filter((name) => /^(server|canvas|trace)/.test(name)), []);
});

test("the extension's settings have their defaults", () => {
  const expected = { serverPath: "", serverArguments: ["serve"], canvas: false };
  assert.deepEqual(readClientSettings(configuration({})), expected);
});

test("no command of the palette has the name of one of the server's", () => {
  const own = manifest.contributes.commands.map(({ command }) => command);
  const server = ["dgemma.explainLast", "dgemma.context", "dgemma.toggle", "dgemma.restart"];
  const taken = [...server, "dgemma.status", ...Object.values(EDITS).map((edit) => edit.server)];
  assert.deepEqual(own.filter((command) => taken.includes(command)), []);
  assert.deepEqual(Object.keys(EDITS).filter((command) => !own.includes(command)), []);
});
