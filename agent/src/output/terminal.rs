//! The terminal itself: how large it is, whose it is, and what it does with keys.

use std::io::{self, Write as _};

use super::screen::SHOW_CURSOR;

/// Who has the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(unix), allow(dead_code, reason = "a console has one program in front"))]
pub(super) enum Whose {
    Ours,
    /// A program in the background would write into what the user does, and be stopped for a change.
    Others,
    /// It was closed.
    Nobodys,
}

/// What is taken for the size of a terminal that does not tell it.
const SIZE: (usize, usize) = (80, 24);

/// Columns and rows.
pub(super) fn size() -> (usize, usize) {
    let Some((columns, rows)) = terminal_size::terminal_size() else { return SIZE };
    match (columns.0.into(), rows.0.into()) {
        (0, _) | (_, 0) => SIZE,
        size => size,
    }
}

/// Keys that are pressed do not show, and so don't tear a drawing; Ctrl-C and Ctrl-Z do what they
/// always do. Until [`restore`], which a panic calls as well.
pub(super) fn quieten() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
    });
    keys::quieten();
}

/// As it was found.
pub(super) fn restore() {
    keys::restore();
    let _ = io::stdout().write_all(SHOW_CURSOR.as_bytes());
    let _ = io::stdout().flush();
}

pub(super) use keys::{Signals, stop, takes_codes, whose};

#[cfg(unix)]
mod keys {
    use std::io;

    use parking_lot::Mutex;
    use rustix::{
        io::Errno,
        process::{Signal, getpgrp, getpid, kill_process},
        termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
    };
    use tokio::signal::unix::{self, SignalKind, signal};

    use super::Whose;

    /// Whether the terminal can do more than print lines.
    pub(in super::super) fn takes_codes() -> bool {
        std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb")
    }

    /// What to give back.
    static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

    /// Whether this program may write to the terminal and change it.
    pub(in super::super) fn whose() -> Whose {
        match tcgetpgrp(io::stdout()) {
            Ok(group) if group == getpgrp() => Whose::Ours,
            Ok(_) => Whose::Others,
            Err(Errno::IO | Errno::NOTTY) => Whose::Nobodys,
            Err(_) => Whose::Others,
        }
    }

    pub(super) fn quieten() {
        if whose() != Whose::Ours {
            return;
        }
        let Ok(before) = tcgetattr(io::stdout()) else { return };
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        if tcsetattr(io::stdout(), OptionalActions::Now, &quiet).is_ok() {
            BEFORE.lock().get_or_insert(before);
        }
    }

    pub(super) fn restore() {
        let Some(before) = BEFORE.lock().take() else { return };
        if whose() == Whose::Ours {
            let _ = tcsetattr(io::stdout(), OptionalActions::Now, &before);
        }
    }

    /// Stops this process, as Ctrl-Z would have without us; comes back when it goes on.
    pub(in super::super) fn stop() {
        let _ = kill_process(getpid(), Signal::STOP);
    }

    /// What the terminal says by signals.
    pub(in super::super) struct Signals {
        resized: Option<unix::Signal>,
        stopped: Option<unix::Signal>,
    }

    /// One of them.
    pub(in super::super) enum Said {
        Resized,
        Stop,
    }

    impl Signals {
        pub(in super::super) fn new() -> Self {
            let stopped = SignalKind::from_raw(Signal::TSTP.as_raw());
            Self {
                resized: signal(SignalKind::window_change()).ok(),
                stopped: signal(stopped).ok(),
            }
        }

        pub(in super::super) async fn next(&mut self) -> Said {
            let Self { resized, stopped } = self;
            tokio::select! {
                () = received(resized) => Said::Resized,
                () = received(stopped) => Said::Stop,
            }
        }
    }

    async fn received(signal: &mut Option<unix::Signal>) {
        let received = match signal {
            Some(signal) => signal.recv().await,
            None => None,
        };
        if received.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(not(unix))]
mod keys {
    /// Whether the console can do more than print lines; one of Windows 10 or later is asked to.
    pub(in super::super) fn takes_codes() -> bool {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        !dumb && anstyle_query::windows::enable_ansi_colors().unwrap_or(false)
    }

    pub(in super::super) fn whose() -> super::Whose {
        super::Whose::Ours
    }

    pub(super) fn quieten() {}

    pub(super) fn restore() {}

    pub(in super::super) fn stop() {}

    pub(in super::super) struct Signals;

    #[allow(dead_code, reason = "not said here")]
    pub(in super::super) enum Said {
        Resized,
        Stop,
    }

    impl Signals {
        pub(in super::super) fn new() -> Self {
            Self
        }

        pub(in super::super) async fn next(&mut self) -> Said {
            std::future::pending().await
        }
    }
}

pub(super) use keys::Said;
