//! A URL as a code that telephones read.

use std::fmt::Write as _;

use qrcode::{Color, EcLevel, QrCode};

use super::text::{Look, printable};

/// Light modules around the code. The standard has four; readers of screens do with two, and the
/// code fits more terminals.
const MARGIN: usize = 2;
/// Light modules are drawn: white on black, whatever the terminal's own colours are.
const WHITE_ON_BLACK: &str = "\x1b[38;5;231m\x1b[48;5;16m";

/// The code in lines of half blocks, with the URL below; or a line that says why there is none.
/// Without colours it is right on a dark background.
pub(crate) fn lines(url: &str, columns: usize, look: Look) -> String {
    if !look.unicode {
        return "No QR code: this terminal has no UTF-8.\n".to_owned();
    }
    let Ok(code) = QrCode::with_error_correction_level(url, EcLevel::L) else {
        return format!("No QR code: {} is too long for one.\n", printable(url));
    };
    let needed = code.width() + 2 * MARGIN;
    if needed > columns {
        return format!(
            "No QR code: it needs {needed} columns, and this terminal has {columns}.\n"
        );
    }
    let mut out = draw(&code, look.colour);
    let _ = writeln!(out, "{}", printable(url));
    out
}

fn draw(code: &QrCode, colour: bool) -> String {
    let size = code.width() + 2 * MARGIN;
    let dark = |x: usize, y: usize| {
        let inside = |at: usize| (MARGIN..MARGIN + code.width()).contains(&at);
        inside(x) && inside(y) && code[(x - MARGIN, y - MARGIN)] == Color::Dark
    };
    let mut out = String::new();
    for y in (0..size).step_by(2) {
        if colour {
            out.push_str(WHITE_ON_BLACK);
        }
        for x in 0..size {
            // What is below the last row is not drawn, so that the margin is even.
            out.push(match (!dark(x, y), !dark(x, y + 1) && y + 1 < size) {
                (true, true) => '█',
                (true, false) => '▀',
                (false, true) => '▄',
                (false, false) => ' ',
            });
        }
        out.push_str(if colour { "\x1b[0m\n" } else { "\n" });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a reader sees: the modules, true where it is dark.
    fn read(drawn: &str) -> Vec<Vec<bool>> {
        let mut rows = Vec::new();
        for line in drawn.lines() {
            let line = line.trim_start_matches(WHITE_ON_BLACK).trim_end_matches("\x1b[0m");
            let filled =
                |halves: [char; 2]| line.chars().map(|c| !halves.contains(&c)).collect::<Vec<_>>();
            rows.push(filled(['█', '▀']));
            rows.push(filled(['█', '▄']));
        }
        rows
    }

    #[test]
    fn each_module_is_where_it_belongs() {
        let url = "https://quick-fox.tunnel.example.com";
        let code = QrCode::with_error_correction_level(url, EcLevel::L).unwrap();
        for colour in [true, false] {
            let rows = read(&draw(&code, colour));
            for y in 0..code.width() {
                for x in 0..code.width() {
                    let dark = code[(x, y)] == Color::Dark;
                    assert_eq!(rows[y + MARGIN][x + MARGIN], dark, "{x} {y} {colour}");
                }
            }
            assert!(rows[0].iter().chain(&rows[1]).all(|dark| !dark), "light around it");
        }
    }

    #[test]
    fn it_is_left_out_where_it_has_no_room() {
        let url = "https://quick-fox.tunnel.example.com";
        let look = Look { unicode: true, ..Look::PLAIN };
        let note = lines(url, 20, look);
        assert_eq!(note, "No QR code: it needs 33 columns, and this terminal has 20.\n");
        assert!(lines(url, 33, look).ends_with(&format!("\n{url}\n")));
        assert!(lines(&"x".repeat(9_000), 999, look).starts_with("No QR code: x"));
        assert!(lines(url, 33, Look::PLAIN).starts_with("No QR code: this terminal"));
    }
}
