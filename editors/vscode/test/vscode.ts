// What the tested modules name of VS Code when they are loaded; nothing of it works.

export class Disposable {}
export class EventEmitter {}
export class CancellationError extends Error {}
