//! The two outputs. A closed pipe (`hookbus spool cat | head`) ends a program quietly, as any
//! other does: there is nobody left to tell.

use std::io::{self, Write};

/// Results.
pub(super) fn print(text: &str) {
    if io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
        std::process::exit(0);
    }
}

/// One line of results.
pub(super) fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// One line of progress, or of what went wrong.
pub(super) fn note(text: &str) {
    // Without a standard error there is nowhere to complain.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// `1234567` -> `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
