// The live canvas: the draft as it denoises, drawn behind the cursor until the fill is done. Tokens
// that are accepted have the colour of text, the others are the fainter the less certain they are.
//
// A decoration cannot begin a new line, so line ends are drawn as ⏎ and a long draft is cut. Several
// decorations at one place are drawn in the order of their types' keys, whatever order they were set
// in; hence a type for each piece.

import * as vscode from "vscode";
import type { CanvasStep, CanvasToken } from "./protocol";

export type Certainty = 0 | 1 | 2 | 3;

export interface Piece {
  readonly text: string;
  readonly certainty: Certainty;
}

const MAX_CHARS = 240;
const MAX_PIECES = 40;

/** The draft as runs of equal certainty; 3 is accepted, 0 is noise. */
export function layOut(tokens: readonly CanvasToken[]): Piece[] {
  const pieces: Piece[] = [];
  let room = MAX_CHARS;
  for (const token of tokens) {
    if (room <= 0 || pieces.length === MAX_PIECES - 1) {
      pieces.push({ text: "…", certainty: 0 });
      break;
    }
    const text = visible(token.text).slice(0, room);
    room -= text.length;
    const certainty = certaintyOf(token);
    const last = pieces.at(-1);
    if (last?.certainty === certainty) {
      pieces[pieces.length - 1] = { text: last.text + text, certainty };
    } else if (text) {
      pieces.push({ text, certainty });
    }
  }
  return pieces;
}

function certaintyOf(token: CanvasToken): Certainty {
  if (token.accepted) {
    return 3;
  }
  return token.confidence >= 0.6 ? 2 : token.confidence >= 0.2 ? 1 : 0;
}

function visible(text: string): string {
  return text.replace(/\r\n|\r|\n/g, "⏎").replace(/\t/g, "    ");
}

export class Canvas implements vscode.Disposable {
  private slots: vscode.TextEditorDecorationType[] = [];
  private readonly replaced = vscode.window.createTextEditorDecorationType({ opacity: "0.4" });
  private readonly changes: vscode.Disposable;
  private drawn: vscode.TextEditor[] = [];
  /** Of the fills that are under way, by their numbers: holes filled together have one each. */
  private readonly steps = new Map<number, CanvasStep>();

  constructor() {
    this.changes = vscode.workspace.onDidChangeTextDocument(({ document }) => {
      if (this.drawn.some((editor) => editor.document === document)) {
        this.clear();
      }
    });
  }

  show(step: CanvasStep): void {
    this.steps.delete(step.id);
    if (!step.done) {
      this.steps.set(step.id, step);
    }
    const before = this.drawn;
    this.drawn = vscode.window.visibleTextEditors.filter(
      ({ document }) => this.stepsIn(document).length > 0,
    );
    for (const editor of before.filter((it) => !this.drawn.includes(it))) {
      this.erase(editor);
    }
    this.reserve();
    for (const editor of this.drawn) {
      const drafts = this.stepsIn(editor.document).map(({ range: { start, end }, tokens }) => ({
        range: new vscode.Range(start.line, start.character, end.line, end.character),
        pieces: layOut(tokens),
      }));
      this.slots.forEach((slot, index) => {
        const decorations = drafts.flatMap(({ range, pieces }) => {
          const piece = pieces[index];
          const at = new vscode.Range(range.start, range.start);
          return piece ? [{ range: at, renderOptions: look(piece) }] : [];
        });
        editor.setDecorations(slot, decorations);
      });
      const replaced = drafts.map(({ range }) => range).filter((range) => !range.isEmpty);
      editor.setDecorations(this.replaced, replaced);
    }
  }

  clear(): void {
    this.steps.clear();
    for (const editor of this.drawn) {
      this.erase(editor);
    }
    this.drawn = [];
  }

  dispose(): void {
    this.changes.dispose();
    this.replaced.dispose();
    for (const slot of this.slots) {
      slot.dispose();
    }
  }

  private stepsIn(document: vscode.TextDocument): CanvasStep[] {
    const uri = document.uri.toString();
    return [...this.steps.values()].filter(
      (step) =>
        vscode.Uri.parse(step.uri).toString() === uri &&
        (step.version === null || step.version === document.version),
    );
  }

  private erase(editor: vscode.TextEditor): void {
    for (const slot of this.slots) {
      editor.setDecorations(slot, []);
    }
    editor.setDecorations(this.replaced, []);
  }

  /** Make the types for the pieces, in the order in which they will be drawn. */
  private reserve(): void {
    if (this.slots.length === 0) {
      this.slots = Array.from({ length: MAX_PIECES }, () =>
        vscode.window.createTextEditorDecorationType({}),
      ).sort((a, b) => (`${a.key}-` < `${b.key}-` ? -1 : 1));
    }
  }
}

function look({ text, certainty }: Piece): vscode.DecorationInstanceRenderOptions {
  return {
    after: {
      contentText: text,
      color: new vscode.ThemeColor(`dgemma.canvas${certainty}`),
      fontStyle: certainty === 3 ? "normal" : "italic",
    },
  };
}
