// What the server sends beyond LSP: `dgemma/status` and `dgemma/canvas`. Both are opted in to by
// `capabilities.experimental.dgemma`; a server that does not know them sends none.

import type { Range } from "vscode-languageclient/node";

export interface ServerStatus {
  readonly state: "loading" | "ready" | "busy" | "off" | "error";
  /** One sentence; that of an error ends in the remedy. */
  readonly message: string;
  readonly model: string | null;
  readonly device: string | null;
  readonly lastLatencyMs: number | null;
  /** How many suggestions were shown, and why the others were not. */
  readonly shown: number;
  readonly silent: Readonly<Record<string, number>>;
}

export interface CanvasToken {
  readonly text: string;
  /** 0 to 1. */
  readonly confidence: number;
  readonly accepted: boolean;
}

/** A fill after one denoising pass. */
export interface CanvasStep {
  readonly uri: string;
  readonly version: number | null;
  readonly id: number;
  readonly step: number;
  readonly maxSteps: number;
  readonly done: boolean;
  /** What the draft would replace. */
  readonly range: Range;
  readonly text: string;
  readonly tokens: readonly CanvasToken[];
}

export const STATUS = "dgemma/status";
export const CANVAS = "dgemma/canvas";
