//! The one door to standard output.

#[expect(clippy::print_stdout, reason = "standard output is this program's product")]
pub(crate) fn line(text: impl std::fmt::Display) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "progress belongs beside the product, not in it")]
pub(crate) fn progress(text: impl std::fmt::Display) {
    eprintln!("{text}");
}
