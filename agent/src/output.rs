//! What standard output shows of the agent's events: plain lines, JSON, URLs, or a live view.
//!
//! All of it is written by a thread of its own: a terminal that is held, or a pipe that nobody
//! reads, stops the output and never the tunnels.

mod live;
mod messages;
mod plain;
pub(crate) mod qr;
mod screen;
pub(crate) mod seen;
mod terminal;
pub(crate) mod text;
pub(crate) mod view;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use tokio::sync::{mpsc::Receiver, oneshot, watch};
use tokio_util::sync::CancellationToken;
use uniroute_agent::{Event, Settings};

pub(crate) use self::{live::Ask, messages::Messages};
use self::{live::Live, plain::Plain, text::Look};
use crate::cli::Output;

/// How long a terminal has to take the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What the program itself has to show.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    /// Where the inspector is.
    pub(crate) inspector: Option<String>,
    /// Its usual port was taken.
    pub(crate) moved: bool,
    /// A signal came.
    pub(crate) draining: bool,
    /// The agent is no more.
    pub(crate) ended: bool,
}

/// How events will be shown.
pub(crate) struct Show {
    output: Output,
    live: Option<Live>,
    qr: bool,
}

impl Show {
    /// `logs`: the log was asked for, and goes to standard error. To be called while the process has
    /// one thread: only then the time of day is known.
    pub(crate) fn new(output: Output, qr: bool, logs: bool, settings: &Settings) -> Self {
        // Log lines and a live view in one terminal don't go together.
        let log_here = logs && io::stderr().is_terminal();
        let live = output == Output::Text && io::stdout().is_terminal() && !log_here;
        let live = live && terminal::takes_codes();
        let live = (live && terminal::whose() == terminal::Whose::Ours)
            .then(|| Live::new(settings, Look::of_environment(), qr));
        Self { output, live, qr }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Where the log goes instead of standard error, if nobody has asked for it there.
    pub(crate) fn messages(&self) -> Option<Messages> {
        self.live.as_ref().map(Live::messages)
    }

    /// Shows events from now on, until there are no more.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(self, events: Receiver<Event>, ask: Ask) -> io::Result<Shown> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (program, told) = watch::channel(Program::default());
        let (done, ended) = oneshot::channel();
        let gone = CancellationToken::new();
        let told_gone = gone.clone();
        let show = move || {
            match self.live {
                Some(live) => runtime.block_on(live.run(events, told, ask, told_gone)),
                None => {
                    let codes = self.qr.then(Vec::new);
                    let lines = Lines { plain: Plain::new(self.output), codes };
                    runtime.block_on(show_lines(events, told, lines));
                }
            }
            let _ = done.send(());
        };
        std::thread::Builder::new().name("output".to_owned()).spawn(show)?;
        Ok(Shown { program, ended, gone })
    }
}

/// Events are being shown.
pub(crate) struct Shown {
    program: watch::Sender<Program>,
    ended: oneshot::Receiver<()>,
    gone: CancellationToken,
}

impl Shown {
    /// The inspector is there; `moved`: not at its usual port, which is taken.
    pub(crate) fn inspector(&self, url: &str, moved: bool) {
        self.program.send_modify(|program| {
            (program.inspector, program.moved) = (Some(url.to_owned()), moved);
        });
    }

    /// Waits until the terminal of a live view was closed: nobody is there to end the agent.
    pub(crate) async fn gone(&self) {
        self.gone.cancelled().await;
    }

    /// A signal came: the agent ends when its open requests are done.
    pub(crate) fn draining(&self) {
        self.program.send_modify(|program| program.draining = true);
    }

    /// Waits for the last lines, if somebody takes them.
    pub(crate) async fn end(self) {
        self.program.send_modify(|program| program.ended = true);
        let _ = tokio::time::timeout(LAST_LINES, self.ended).await;
    }
}

async fn show_lines(
    mut events: Receiver<Event>,
    mut program: watch::Receiver<Program>,
    mut lines: Lines,
) {
    // What was told before this thread began is to be shown too.
    program.mark_changed();
    let mut known = Program::default();
    while !known.ended {
        tokio::select! {
            biased;
            Ok(()) = program.changed() => {
                let now = program.borrow_and_update().clone();
                lines.plain.program(&known, &now).iter().for_each(|line| say(line));
                known = now;
            }
            event = events.recv() => match event {
                Some(event) => lines.show(&event, &known),
                None => return,
            },
        }
    }
    while let Ok(event) = events.try_recv() {
        lines.show(&event, &known);
    }
}

struct Lines {
    plain: Plain,
    /// URLs whose codes were shown; `None`: nobody wants any.
    codes: Option<Vec<String>>,
}

impl Lines {
    fn show(&mut self, event: &Event, program: &Program) {
        if let Some(line) = self.plain.event(event, program) {
            say(&line);
        }
        let (Some(codes), Event::Ready { url, .. }) = (&mut self.codes, event) else { return };
        if !codes.contains(url) {
            show_code(url);
            codes.push(url.clone());
        }
    }
}

/// Who closed our output does not want to see any more of it; the tunnel goes on.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// To standard error: standard output is for lines. What is no terminal may be a container's log that
/// somebody looks at, so it is shown there, too.
fn show_code(url: &str) {
    let terminal = io::stderr().is_terminal();
    let columns = if terminal { terminal::size().0 } else { usize::MAX };
    let look =
        if terminal { Look::of_environment() } else { Look { unicode: true, ..Look::PLAIN } };
    let code = qr::lines(url, columns, look);
    let _ = io::stderr().write_all(code.as_bytes());
}
