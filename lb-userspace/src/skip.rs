//! Unit tests that cannot run here say so, as end-to-end tests do. Tests only.

use std::{fs::OpenOptions, io::Write as _};

/// Says that `test` did not run, and why: on standard output, and in the file that `LB_SKIP_FILE` names,
/// for whoever sums up the run.
pub fn skip(test: &str, reason: &str) {
    let line = format!("SKIP {test}: {reason}\n");
    print!("{line}");
    if let Ok(path) = std::env::var("LB_SKIP_FILE") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        // In one piece: other tests append at the same time.
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}
