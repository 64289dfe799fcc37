//! A line that is typed in the terminal and not shown.

use std::io;

/// Asks for it. The terminal is as it was when this is over, however it ends.
///
/// # Errors
/// When there is no terminal, or the user gives up (Ctrl-C: [`io::ErrorKind::Interrupted`]).
#[cfg(unix)]
pub(super) fn ask(question: &str) -> io::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let line = runtime.block_on(unix::line(question));
    // The thread that reads may still do so, and ends with the process.
    runtime.shutdown_background();
    line
}

/// Asks for it. The terminal is as it was when this is over, however it ends.
///
/// # Errors
/// When there is no terminal, or the user gives up.
#[cfg(not(unix))]
pub(super) fn ask(question: &str) -> io::Result<String> {
    rpassword::prompt_password(question)
}

#[cfg(unix)]
mod unix {
    use std::{
        fs::File,
        io::{self, BufRead as _, BufReader, Write as _},
    };

    use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
    use uniroute_shared::shutdown::Signals;

    /// The terminal, that shows nothing of what is typed but the line's end while the value lives.
    pub(super) struct Quiet {
        terminal: File,
        before: Termios,
    }

    impl Quiet {
        pub(super) fn new() -> io::Result<Self> {
            let terminal = File::options().read(true).write(true).open("/dev/tty")?;
            let before = tcgetattr(&terminal)?;
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ECHO);
            quiet.local_modes.insert(LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
            tcsetattr(&terminal, OptionalActions::Now, &quiet)?;
            Ok(Self { terminal, before })
        }

        pub(super) fn say(&self, text: &str) -> io::Result<()> {
            (&self.terminal).write_all(text.as_bytes())
        }
    }

    impl Drop for Quiet {
        fn drop(&mut self) {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        }
    }

    /// The next line, unless a signal comes before it.
    pub(super) async fn line(question: &str) -> io::Result<String> {
        // Before anything is changed: from now on a signal finds it changed back.
        let mut signals = Signals::new()?;
        let quiet = Quiet::new()?;
        let mut terminal = BufReader::new(quiet.terminal.try_clone()?);
        quiet.say(question)?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            terminal.read_line(&mut line).map(|_| line)
        });
        tokio::select! {
            biased;
            () = signals.next() => {
                quiet.say("\n")?;
                Err(io::ErrorKind::Interrupted.into())
            }
            line = reading => line.map_err(io::Error::other)?,
        }
    }
}
