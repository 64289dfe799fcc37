//! The one door to standard output, and to files that are asked for.

use std::path::Path;

use anyhow::Context;

#[expect(clippy::print_stdout, reason = "standard output is this program's product")]
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "progress belongs beside the product, not in it")]
pub(crate) fn progress(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

pub(crate) fn file(path: &Path, text: impl AsRef<[u8]>) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
