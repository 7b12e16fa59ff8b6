//! The inputs that are kept: a file with one in hexadecimal a line, or a folder with one a file, as libFuzzer
//! has them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::Input;
use crate::differential::{hex, unhex};

/// Reads a file of them.
///
/// # Errors
/// It cannot be read, or a line is not hexadecimal.
pub fn read(file: &Path) -> Result<Vec<Input>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| Ok(Input::decode(&unhex(line)?))).collect()
}

/// Puts each of a file's into a file of its own.
///
/// # Errors
/// One cannot be read or written.
pub fn unpack(file: &Path, folder: &Path) -> Result<usize> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let inputs = read(file)?;
    for (input, number) in inputs.iter().zip(0..) {
        let path = folder.join(format!("kept-{number:05}"));
        fs::write(&path, input.encode()).with_context(|| path.display().to_string())?;
    }
    Ok(inputs.len())
}

/// Reads a folder of them, in the order of their names.
///
/// # Errors
/// One cannot be read.
pub fn of_folder(folder: &Path) -> Result<Vec<Input>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        paths.push(entry?.path());
    }
    paths.sort();
    let read = |path: &PathBuf| {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        Ok(Input::decode(&bytes))
    };
    paths.iter().map(read).collect()
}

/// Makes a file of a folder's, in an order that does not depend on their names.
///
/// # Errors
/// One cannot be read, or the file not be written.
pub fn pack(folder: &Path, file: &Path) -> Result<usize> {
    let inputs = of_folder(folder)?;
    let mut lines: Vec<String> = inputs.iter().map(|input| hex(&input.encode())).collect();
    lines.sort();
    lines.dedup();
    let about = "# Sequences of frames that reach every edge that fuzzing has reached; made by `cargo xtask fuzz --keep`.\n";
    let text = format!("{about}{}\n", lines.join("\n"));
    fs::write(file, text).with_context(|| file.display().to_string())?;
    Ok(lines.len())
}
