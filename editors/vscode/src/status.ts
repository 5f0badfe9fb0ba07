// The status bar item: model, state, last latency. It shows what `dgemma/status` says; with a server
// that does not send it, whether the server runs and how long the last suggestion took.

import * as vscode from "vscode";
import type { ServerStatus } from "./protocol";

/** What the extension itself knows of the server. */
export type Phase =
  | { readonly kind: "missing" }
  | { readonly kind: "installing" }
  | { readonly kind: "starting" }
  | { readonly kind: "running" }
  | { readonly kind: "stopped"; readonly message: string };

export interface Known {
  readonly phase: Phase;
  readonly status: ServerStatus | undefined;
  /** Of the last suggestion, measured here. */
  readonly latencyMs: number | undefined;
  readonly isOn: boolean;
}

export interface Shown {
  readonly text: string;
  readonly lines: readonly string[];
  readonly isProblem: boolean;
}

export function describe(known: Known): Shown {
  const { phase } = known;
  switch (phase.kind) {
    case "missing":
      return shown("$(cloud-download) dgemma: install", ["No server was found. Click to install it."]);
    case "installing":
      return shown("$(sync~spin) dgemma: installing", ["The server is being installed."]);
    case "starting":
      return shown("$(loading~spin) dgemma", ["The server is starting."]);
    case "stopped":
      return { ...shown("$(error) dgemma", [phase.message]), isProblem: true };
    case "running":
      return describeRunning(known);
  }
}

function describeRunning({ status, latencyMs, isOn }: Known): Shown {
  const name = status?.model ? shortName(status.model) : "dgemma";
  const lines = [status?.message || "The server is running.", ...details(status)];
  const latency = status ? status.lastLatencyMs : latencyMs;
  const suffix = latency === null || latency === undefined ? "" : ` ${Math.round(latency)} ms`;
  if (suffix) {
    lines.push(`Last suggestion: ${suffix.trim()}`);
  }
  if (status?.state === "error") {
    return { ...shown(`$(error) ${name}`, lines), isProblem: true };
  }
  if (status?.state === "off" || !isOn) {
    return shown(`$(circle-slash) ${name}: off`, [...lines, "Suggestions are switched off."]);
  }
  if (status?.state === "loading") {
    return shown(`$(loading~spin) ${name}: loading`, lines);
  }
  const icon = status?.state === "busy" ? "$(sync~spin)" : "$(sparkle)";
  return shown(`${icon} ${name}${suffix}`, lines);
}

function details(status: ServerStatus | undefined): string[] {
  if (!status) {
    return [];
  }
  const lines: string[] = [];
  if (status.model) {
    lines.push(`Model: ${status.model}${status.device ? ` on ${status.device}` : ""}`);
  }
  const silent = Object.entries(status.silent ?? {});
  lines.push(`Suggestions shown: ${status.shown}`);
  if (silent.length > 0) {
    const reasons = silent.map(([reason, count]) => `${reason.replaceAll("_", " ")} ${count}`);
    lines.push(`Not shown: ${reasons.join(", ")}`);
  }
  return lines;
}

/** A model's folder may be a long path; its last part is its name. */
function shortName(model: string): string {
  return model.split(/[\\/]/).filter(Boolean).at(-1) ?? model;
}

function shown(text: string, lines: readonly string[]): Shown {
  return { text, lines, isProblem: false };
}

export class StatusItem implements vscode.Disposable {
  private readonly item: vscode.StatusBarItem;
  private known: Known = {
    phase: { kind: "starting" },
    status: undefined,
    latencyMs: undefined,
    isOn: true,
  };

  constructor() {
    this.item = vscode.window.createStatusBarItem("dgemma", vscode.StatusBarAlignment.Right, 100);
    this.item.name = "dgemma";
    this.item.command = "dgemma.showMenu";
  }

  /** A phase begins; what was known of the server before it is gone. */
  enter(phase: Phase): void {
    this.known = { phase, status: undefined, latencyMs: undefined, isOn: this.known.isOn };
    this.render();
  }

  update(change: Partial<Omit<Known, "phase">>): void {
    this.known = { ...this.known, ...change };
    this.render();
  }

  get isOn(): boolean {
    return this.known.status ? this.known.status.state !== "off" : this.known.isOn;
  }

  get isMissing(): boolean {
    return this.known.phase.kind === "missing";
  }

  dispose(): void {
    this.item.dispose();
  }

  private render(): void {
    const { text, lines, isProblem } = describe(this.known);
    this.item.text = text;
    // Not Markdown: a path or a message of the server could be taken for a link.
    this.item.tooltip = lines.join("\n");
    this.item.backgroundColor = isProblem
      ? new vscode.ThemeColor("statusBarItem.errorBackground")
      : undefined;
    this.item.show();
  }
}
