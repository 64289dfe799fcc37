//! What asks a program to end, signals and the like: the first to drain, the second at once.

use std::io;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows;

/// SIGINT and SIGTERM. On Windows: Ctrl-C, Ctrl-Break, the console's window closed, the user logging
/// off, and the system's end. Windows itself ends a program some seconds after the last three.
#[derive(Debug)]
pub struct Signals {
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(unix)]
    terminate: Signal,
    #[cfg(windows)]
    interrupt: windows::CtrlC,
    #[cfg(windows)]
    interrupt_harder: windows::CtrlBreak,
    #[cfg(windows)]
    close: windows::CtrlClose,
    #[cfg(windows)]
    log_off: windows::CtrlLogoff,
    #[cfg(windows)]
    shut_down: windows::CtrlShutdown,
}

#[cfg(unix)]
impl Signals {
    /// From now on these signals do not end the process by themselves.
    ///
    /// # Errors
    /// When the system takes no handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(windows)]
impl Signals {
    /// From now on these do not end the process by themselves.
    ///
    /// # Errors
    /// When the system takes no handler.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: windows::ctrl_c()?,
            interrupt_harder: windows::ctrl_break()?,
            close: windows::ctrl_close()?,
            log_off: windows::ctrl_logoff()?,
            shut_down: windows::ctrl_shutdown()?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.interrupt_harder.recv() => {}
            _ = self.close.recv() => {}
            _ = self.log_off.recv() => {}
            _ = self.shut_down.recv() => {}
        }
    }
}
