// What is in the environment that this extension made, and what the extension would put there now.
// The note of it lies in the environment's own folder, and goes when that goes.

import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { readFile } from "node:fs/promises";
import * as path from "node:path";
import type * as vscode from "vscode";
import { programsOf } from "./server";

const NOTE = "dgemma-installed.json";

export interface Build {
  /** The wheel's file name, else `dgemma-lsp==version`. */
  readonly requirement: string;
  /** Of the wheel, which may be built anew under the same name; null without one. */
  readonly sha256: string | null;
}

export interface Note extends Build {
  /** Whether torch came from the index for the CPU. */
  readonly cpu: boolean;
}

export interface Shipped extends Build {
  /** What pip is told to install: the wheel's path, else the requirement. */
  readonly argument: string;
}

/** Whether the environment holds another server than the extension ships; without a note it does. */
export function isStale(note: Note | undefined, shipped: Build): boolean {
  return note?.requirement !== shipped.requirement || note.sha256 !== shipped.sha256;
}

/** A note as it was written; undefined if it is none. */
export function parseNote(text: string): Note | undefined {
  let note: Partial<Record<keyof Note, unknown>> | null;
  try {
    note = JSON.parse(text);
  } catch {
    return undefined;
  }
  const { requirement, sha256, cpu } = note ?? {};
  const isHash = sha256 === null || typeof sha256 === "string";
  return typeof requirement === "string" && isHash && typeof cpu === "boolean"
    ? { requirement, sha256, cpu }
    : undefined;
}

/** What pip is told to install; the wheel of this extension, else the released package. */
export function requirement(wheels: readonly string[], version: string): string {
  return wheels.find((name) => name.endsWith(".whl")) ?? `dgemma-lsp==${version}`;
}

export function managedEnvironment(context: vscode.ExtensionContext): string {
  return path.join(context.globalStorageUri.fsPath, "server");
}

/** A program of an environment, if it is there. */
export function programIn(environment: string, name: string): string | undefined {
  return programsOf(environment, name, process.platform).find(existsSync);
}

export async function shippedBuild(context: vscode.ExtensionContext): Promise<Shipped> {
  const folder = path.join(context.extensionPath, "server");
  const wheels = existsSync(folder) ? readdirSync(folder).map((name) => path.join(folder, name)) : [];
  const manifest = context.extension.packageJSON as { version: string };
  const argument = requirement(wheels, manifest.version);
  if (!wheels.includes(argument)) {
    return { argument, requirement: argument, sha256: null };
  }
  const sha256 = createHash("sha256").update(await readFile(argument)).digest("hex");
  return { argument, requirement: path.basename(argument), sha256 };
}

export function readNote(environment: string): Note | undefined {
  const file = path.join(environment, NOTE);
  return existsSync(file) ? parseNote(readFileSync(file, "utf-8")) : undefined;
}

export function writeNote(environment: string, { requirement, sha256, cpu }: Note): void {
  const text = JSON.stringify({ requirement, sha256, cpu }, undefined, 2);
  writeFileSync(path.join(environment, NOTE), `${text}\n`);
}
