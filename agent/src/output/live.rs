//! The live view: what an agent does, at the end of what the terminal shows, drawn again when
//! something has changed.

use std::{io, time::Duration};

use time::UtcOffset;
use tokio::{
    sync::{mpsc::Receiver, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use uniroute_agent::{Event, Settings};

use super::{
    Program,
    messages::Messages,
    qr,
    screen::Screen,
    seen::{self, Phase, Seen, Snapshot},
    terminal::{self, Said, Whose},
    text::{Line, Look},
    view::{self, Page},
};

/// Time between two drawings; what happens in between is drawn together.
const FRAME: Duration = Duration::from_millis(100);
/// Time between two looks at what goes on by itself, such as the time.
const LOOK: Duration = Duration::from_secs(1);

/// What the agent tells of itself, when asked.
pub(crate) type Ask = Box<dyn Fn() -> Option<Snapshot> + Send>;

/// What the view shows, and where.
pub(crate) struct Live {
    seen: Seen,
    look: Look,
    offset: UtcOffset,
    messages: Messages,
    /// URLs whose codes are still to be shown; `None`: nobody wants any.
    codes: Option<Vec<String>>,
    shown_codes: Vec<String>,
}

impl Live {
    pub(crate) fn new(settings: &Settings, look: Look, qr: bool) -> Self {
        Self {
            seen: Seen::new(settings),
            look,
            // Known only as long as this process has one thread.
            offset: UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC),
            messages: Messages::default(),
            codes: qr.then(Vec::new),
            shown_codes: Vec::new(),
        }
    }

    /// Where the log goes.
    pub(crate) fn messages(&self) -> Messages {
        self.messages.clone()
    }

    /// Shows what happens until nothing does any more.
    pub(crate) async fn run(
        mut self,
        mut events: Receiver<Event>,
        mut program: watch::Receiver<Program>,
        ask: Ask,
        gone: CancellationToken,
    ) {
        let mut screen = Screen::new(io::stdout(), self.look);
        let mut frame = interval(FRAME);
        frame.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut look = interval(LOOK);
        let mut signals = terminal::Signals::new();
        let messages = self.messages.clone();
        let (mut changed, mut ours) = (true, false);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.take(event),
                    None => break,
                },
                Ok(()) = program.changed() => {
                    let program = program.borrow_and_update().clone();
                    self.program(&program);
                    if program.ended {
                        break;
                    }
                }
                () = messages.some() => {
                    messages.take().into_iter().for_each(|message| self.seen.message(message));
                }
                said = signals.next() => if matches!(said, Said::Stop) {
                    terminal::restore();
                    terminal::stop();
                    ours = false;
                },
                _ = look.tick() => if let Some(snapshot) = ask() {
                    self.seen.tell(snapshot);
                },
                _ = frame.tick(), if changed => {
                    if self.draw(&mut screen, &mut ours) == Whose::Nobodys {
                        gone.cancel();
                    }
                    changed = false;
                    continue;
                }
            }
            changed = true;
        }
        while let Ok(event) = events.try_recv() {
            self.take(event);
        }
        if let Some(snapshot) = ask() {
            self.seen.tell(snapshot);
        }
        self.seen.end();
        messages.take().into_iter().for_each(|message| self.seen.message(message));
        self.draw(&mut screen, &mut ours);
        terminal::restore();
    }

    fn take(&mut self, event: Event) {
        if let (Some(codes), Event::Ready { url, .. }) = (&mut self.codes, &event)
            && !self.shown_codes.contains(url)
        {
            codes.push(url.clone());
            self.shown_codes.push(url.clone());
        }
        self.seen.take(event, seen::now());
    }

    fn program(&mut self, program: &Program) {
        self.seen.inspector.clone_from(&program.inspector);
        self.seen.moved = program.moved;
        if program.draining {
            self.seen.phase_is(Phase::Draining);
        }
    }

    /// Nothing is shown while the terminal is somebody else's. `ours`: it was ours before.
    fn draw(&mut self, screen: &mut Screen<io::Stdout>, ours: &mut bool) -> Whose {
        let whose = terminal::whose();
        let before = std::mem::replace(ours, whose == Whose::Ours);
        if !*ours {
            return whose;
        }
        if !before {
            terminal::quieten();
            screen.begin();
        }
        let (columns, rows) = terminal::size();
        // A terminal that is gone shows nothing; the tunnels go on.
        for url in self.codes.iter_mut().flat_map(std::mem::take) {
            let _ = screen.above(&qr::lines(&url, columns, self.look).replace('\n', "\r\n"));
        }
        let _ = screen.draw(&self.lines(columns, rows, seen::now()), columns);
        whose
    }

    fn lines(&self, columns: usize, rows: usize, now: seen::Millis) -> Vec<Line> {
        // The last row is the cursor's.
        let rows = rows.saturating_sub(1).max(1);
        let page = Page { columns, rows, look: self.look, offset: self.offset, now };
        view::live(&self.seen, page)
    }
}
