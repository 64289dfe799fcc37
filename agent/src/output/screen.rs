//! Draws lines at the end of what a terminal shows, again and again in the same place; only what has
//! changed is written. What was above stays, and so does the last drawing when the program ends.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use super::text::{Line, Look};

const HIDE_CURSOR: &str = "\x1b[?25l";
pub(super) const SHOW_CURSOR: &str = "\x1b[?25h";

/// A line as it was written, and the columns that it has.
struct Drawn {
    text: String,
    width: usize,
}

/// Between two drawings the cursor is at the beginning of the line below the last one.
pub(super) struct Screen<W> {
    out: W,
    look: Look,
    columns: usize,
    drawn: Vec<Drawn>,
    begun: bool,
}

impl<W: Write> Screen<W> {
    pub(super) fn new(out: W, look: Look) -> Self {
        Self { out, look, columns: 0, drawn: Vec::new(), begun: false }
    }

    /// The next drawing is the first one: what was drawn is no longer right above the cursor.
    pub(super) fn begin(&mut self) {
        self.drawn.clear();
        self.begun = false;
    }

    /// Shows `lines` in place of those before. `columns` are the terminal's now: it has broken the
    /// lines before anew if that is another number.
    ///
    /// # Errors
    /// When the terminal is gone; the tunnels go on.
    pub(super) fn draw(&mut self, lines: &[Line], columns: usize) -> io::Result<()> {
        let columns = columns.max(1);
        let mut text = String::new();
        if !self.begun {
            text.push_str(HIDE_CURSOR);
            self.begun = true;
        }
        if self.columns != columns {
            self.columns = columns;
            text.push_str(&self.clear());
        }
        let lines = lines.iter();
        let new = lines.map(|line| Drawn { text: line.paint(self.look), width: line.width() });
        self.change(&mut text, new.collect());
        if text.is_empty() {
            return Ok(());
        }
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Writes lines above the drawing, where they stay; the next drawing comes below.
    ///
    /// # Errors
    /// As for a drawing.
    pub(super) fn above(&mut self, lines: &str) -> io::Result<()> {
        let text = self.clear() + lines;
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// What takes the drawing away.
    fn clear(&mut self) -> String {
        let rows = self.rows(&self.drawn);
        self.drawn.clear();
        if rows == 0 { String::new() } else { up(rows) + &erase(rows) }
    }

    fn rows(&self, lines: &[Drawn]) -> usize {
        lines.iter().map(|line| line.width.div_ceil(self.columns.max(1)).max(1)).sum()
    }

    /// What makes the drawing the new one.
    fn change(&mut self, text: &mut String, new: Vec<Drawn>) {
        let same_rows =
            |(a, b): &(&Drawn, &Drawn)| a.text == b.text || (a.width.max(b.width) <= self.columns);
        // Up to here, each line has the rows that it had.
        let stable = self.drawn.iter().zip(&new).take_while(same_rows).count();
        let all = self.rows(&self.drawn);
        let mut at = 0;
        for (before, line) in self.drawn[..stable].iter().zip(&new) {
            if before.text != line.text {
                let _ = write!(text, "{}\x1b[2K{}\r{}", up(all - at), line.text, down(all - at));
            }
            at += self.rows(std::slice::from_ref(line));
        }
        if stable < self.drawn.len() || stable < new.len() {
            let _ = write!(text, "{}{}", up(all - at), erase(all - at));
            for line in &new[stable..] {
                text.push_str(&line.text);
                text.push_str("\r\n");
            }
        }
        self.drawn = new;
    }
}

/// To the beginning of a line above.
fn up(rows: usize) -> String {
    if rows == 0 { "\r".to_owned() } else { format!("\r\x1b[{rows}A") }
}

/// Empties rows, and goes back to the first one. Not with one sequence for the rest of the screen: for
/// some terminals that is a reason to keep what was on it.
fn erase(rows: usize) -> String {
    if rows == 0 { String::new() } else { "\x1b[2K\x1b[1B".repeat(rows) + &up(rows) }
}

fn down(rows: usize) -> String {
    if rows == 0 { String::new() } else { format!("\x1b[{rows}B") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::text::{Tone, width};

    /// As much of a terminal as a drawing needs: it breaks lines, and moves its cursor.
    struct Terminal {
        columns: usize,
        rows: Vec<String>,
        row: usize,
        column: usize,
        written: usize,
    }

    impl Terminal {
        fn new(columns: usize) -> Self {
            Self { columns, rows: vec![String::new()], row: 0, column: 0, written: 0 }
        }

        fn put(&mut self, c: char) {
            if self.column == self.columns {
                (self.row, self.column) = (self.row + 1, 0);
            }
            while self.rows.len() <= self.row {
                self.rows.push(String::new());
            }
            let mut row: Vec<char> = self.rows[self.row].chars().collect();
            row.resize(row.len().max(self.column + 1), ' ');
            row[self.column] = c;
            self.rows[self.row] = row.into_iter().collect();
            self.column += 1;
        }

        fn sequence(&mut self, parameter: &str, end: char) {
            let number = parameter.parse().unwrap_or(1);
            match end {
                'A' => self.row = self.row.checked_sub(number).expect("not above the first row"),
                'B' => self.row += number,
                'K' => self.rows[self.row].clear(),
                'h' | 'l' | 'm' => {}
                other => panic!("unknown sequence {other}"),
            }
        }

        fn text(&self) -> String {
            let rows: Vec<_> = self.rows.iter().map(|row| row.trim_end()).collect();
            rows.join("\n").trim_end().to_owned()
        }
    }

    impl Write for Terminal {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written += bytes.len();
            let text = std::str::from_utf8(bytes).unwrap();
            let mut chars = text.chars();
            while let Some(c) = chars.next() {
                match c {
                    '\r' => self.column = 0,
                    '\n' => {
                        self.row += 1;
                        while self.rows.len() <= self.row {
                            self.rows.push(String::new());
                        }
                    }
                    '\x1b' => {
                        assert_eq!(chars.next(), Some('['));
                        let mut parameter = String::new();
                        let end = loop {
                            match chars.next().unwrap() {
                                c if c.is_ascii_alphabetic() => break c,
                                c => parameter.push(c),
                            }
                        };
                        self.sequence(&parameter, end);
                    }
                    c => self.put(c),
                }
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn screen(columns: usize) -> Screen<Terminal> {
        let look = Look { unicode: true, ..Look::PLAIN };
        Screen::new(Terminal::new(columns), look)
    }

    fn draw(screen: &mut Screen<Terminal>, text: &str) {
        let lines: Vec<_> = text.lines().map(|line| Line::of(Tone::Plain, line)).collect();
        let columns = screen.out.columns;
        screen.draw(&lines, columns).unwrap();
    }

    #[test]
    fn a_drawing_takes_the_place_of_the_one_before() {
        let mut screen = screen(20);
        screen.out.write_all(b"$ uniroute\r\n").unwrap();
        for text in ["a\nb\nc", "a\nB\nc", "a", "a\n\nb\nlonger\nand\nlonger", "x\ny", "", "end"] {
            draw(&mut screen, text);
            assert_eq!(screen.out.text(), format!("$ uniroute\n{text}").trim_end());
            assert_eq!(screen.out.column, 0);
        }
    }

    #[test]
    fn a_url_that_is_too_long_is_whole_and_moves_nothing() {
        let mut screen = screen(10);
        for (first, last) in
            [("one", "two"), ("ONE", "two"), ("one", "TWO\nthree"), ("exactly_10", "x")]
        {
            let url = "https://much-longer.test/";
            draw(&mut screen, &format!("{first}\n{url}\n{last}"));
            let broken = format!("{}\n{}\n{}", &url[..10], &url[10..20], &url[20..]);
            assert_eq!(screen.out.text(), format!("{first}\n{broken}\n{last}"));
        }
        draw(&mut screen, "short\nline");
        assert_eq!(screen.out.text(), "short\nline");
    }

    #[test]
    fn only_what_has_changed_is_written() {
        let mut screen = screen(80);
        let lines =
            |number: u32| format!("{}\nrequests {number}\n{}", "-".repeat(70), "=".repeat(70));
        draw(&mut screen, &lines(1));
        let before = screen.out.written;
        draw(&mut screen, &lines(1));
        assert_eq!(screen.out.written, before, "nothing has changed");
        draw(&mut screen, &lines(2));
        let written = screen.out.written - before;
        assert!(written < 40, "{written} bytes");
        assert_eq!(screen.out.text(), lines(2));
    }

    #[test]
    fn another_width_is_drawn_cleanly() {
        let mut screen = screen(20);
        screen.out.write_all(b"above\r\n").unwrap();
        draw(&mut screen, "fifteen columns\nx");
        // The terminal breaks the lines that are there anew.
        screen.out.columns = 10;
        screen.out.rows = ["above", "fifteen co", "lumns", "x", ""].map(str::to_owned).to_vec();
        (screen.out.row, screen.out.column) = (4, 0);
        draw(&mut screen, "narrow\nx");
        assert_eq!(screen.out.text(), "above\nnarrow\nx");
    }

    #[test]
    fn what_is_said_above_stays() {
        let mut screen = screen(20);
        draw(&mut screen, "a\nb");
        screen.above("code\r\n").unwrap();
        draw(&mut screen, "a\nc");
        assert_eq!(screen.out.text(), "code\na\nc");
        assert_eq!(width("code"), 4);
    }
}
