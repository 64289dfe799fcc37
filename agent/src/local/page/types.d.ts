// The shapes of the agent's local API, for editors and `tsc --checkJs`; not served.

export interface Summary {
  seq: number;
  rev: number;
  id: string;
  tunnel: string;
  method: string;
  scheme: string;
  host: string;
  path: string;
  visitor: string;
  started_ms: number;
  state: 'open' | 'done' | 'failed';
  status: number | null;
  kind: 'http' | 'websocket' | 'sse' | 'grpc';
  type: string;
  request_size: number;
  response_size: number;
  wait_us: number | null;
  duration_us: number | null;
  error: string | null;
  replay_of: string | null;
  upstream: string | null;
  /** What free words are looked for in; made by the page. */
  hay?: string;
}

export interface Body {
  size: number;
  kept: number;
  where: 'memory' | 'spool' | 'none';
  encoding: string;
  text: boolean;
  text_preview?: string;
  preview_cut?: boolean;
  cut: boolean;
}

export type Field = [string, string];

export interface Detail extends Summary {
  http_version: string;
  route: number;
  timing: {
    held_us?: number;
    edge_us?: number;
    link_us?: number;
    connect_us?: number;
    reused: boolean;
    send_us: number;
    wait_us: number;
    receive_us: number;
  };
  request: { headers: Field[]; trailers: Field[]; body: Body };
  response: null | {
    status: number;
    reason: string;
    headers: Field[];
    trailers: Field[];
    informational: unknown[];
    body: Body;
  };
  grpc?: { status: number | null; message: string };
  frames: number;
}

export interface Frame {
  n: number;
  at_us: number;
  from: 'visitor' | 'upstream';
  kind: 'text' | 'binary' | 'ping' | 'pong' | 'close' | 'event' | 'message';
  size: number;
  text?: string;
  base64?: string;
  event?: string;
  id?: string;
  compressed?: boolean;
  cut: boolean;
}

export interface Status {
  agent_id: string;
  version: string;
  started_ms: number;
  sessions: { edge: string; server: string; carrier: string; since_ms: number; rtt_us: number }[];
  trouble: string;
  tunnels: Tunnel[];
  inspector?: {
    captured: number;
    bytes: number;
    max_requests: number;
    max_bytes: number;
    evicted: number;
    spool_bytes: number;
    recording: boolean;
  };
}

export interface Tunnel {
  key: string;
  kind: string;
  name: string;
  url: string;
  state: 'waiting' | 'ready' | 'paused' | 'refused' | 'deleted';
  reason: string;
  upstreams: {
    url: string;
    healthy: boolean | null;
    reason: string;
    since_ms: number;
    history: { at_ms: number; healthy: boolean; reason: string }[];
  }[];
  requests: number;
  failed: number;
  open: number;
}

export interface Diff {
  status: [number | null, number | null];
  headers: { name: string; a?: string; b?: string }[];
  body: { same: boolean; note?: string; hunks: { tag: 'equal' | 'insert' | 'delete'; lines: string[] }[] };
}

/** What the parts of the page ask of the whole. */
export interface App {
  status: Status | null;
  live: string;
  select(id: string | null, options?: { tab?: string; push?: boolean; other?: string }): void;
  tab(name: string): void;
  replay(id: string, change?: object): Promise<void>;
  curl(id: string): Promise<void>;
  compare(id: string, other: string | null): void;
  pick(id: string): void;
  find(id: string): Summary | undefined;
  alike(row: Summary): Summary[];
}
