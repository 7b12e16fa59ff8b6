//! `hash_key_file`: the secret of the flow hash, where balancers are to share it.

use std::fmt;

use lb_common::tables::HASH_KEY_WORDS;

use super::{
    access::ReadFile,
    reader::{Located, Section},
};

/// Hexadecimal digits of a key.
const DIGITS: usize = HASH_KEY_WORDS * 16;

/// What a file's group, and anybody, may do with it: all of it.
const OTHERS: u32 = 0o077;

/// The secret by which flows are placed. Balancers that have the same one place every flow alike.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub [u64; HASH_KEY_WORDS]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Who knows it can aim at a backend.
        f.write_str("HashKey(secret)")
    }
}

/// The key in the file that the configuration names, if it names one.
pub(super) fn read(root: &Section<'_>, read: ReadFile<'_>) -> Option<HashKey> {
    root.value("hash_key_file", |path| {
        let file = read(path).map_err(|error| format!("cannot read {path}: {error}"))?;
        check_mode(file.mode, path)?;
        parse(&file.text).map_err(|problem| format!("{path}: {problem}"))
    })
    .map(Located::into_inner)
}

/// Whoever can read it knows the key, and whoever can write it has them all know another.
fn check_mode(mode: u32, path: &str) -> Result<(), String> {
    match mode & OTHERS {
        0 => Ok(()),
        _ => Err(format!(
            "{path} is open to others than its owner (mode {:04o}), and who knows the key can aim at a backend: `chmod 600 {path}`, and make another key if they may have read it",
            mode & 0o7777
        )),
    }
}

fn parse(text: &str) -> Result<HashKey, String> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let wrong = |what: String| {
        format!(
            "{what}, and a key is {DIGITS} hexadecimal digits: `(umask 077; od -An -vtx1 -N{} /dev/urandom > FILE)` makes one",
            DIGITS / 2
        )
    };
    // The character itself may be part of a secret.
    if let Some(at) = digits.iter().position(|c| !c.is_ascii_hexdigit()) {
        return Err(wrong(format!("character {} is no such digit", at + 1)));
    }
    if digits.len() != DIGITS {
        return Err(wrong(format!("it has {} digits", digits.len())));
    }
    let mut key = [0u64; HASH_KEY_WORDS];
    for (word, digits) in key.iter_mut().zip(digits.chunks(16)) {
        let digit = |word, c: &char| word << 4 | u64::from(c.to_digit(16).unwrap_or(0));
        *word = digits.iter().fold(0, digit);
    }
    // Each multiplies some field of a flow, which would not count otherwise.
    if key.contains(&0) {
        return Err(wrong("sixteen digits in a row are zeros".to_owned()));
    }
    Ok(HashKey(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_whatever_its_spaces_are() {
        let text: String = (1..=HASH_KEY_WORDS)
            .map(|n| format!(" 00 00 00 00\n00 00 00 {n:02x}\n"))
            .collect();
        let key = parse(&text).unwrap();
        assert_eq!(key.0, std::array::from_fn(|n| n as u64 + 1));
        assert_eq!(format!("{key:?}"), "HashKey(secret)");
    }

    #[test]
    fn a_file_that_others_than_its_owner_can_open_is_refused_with_what_would_be_right() {
        for mode in [0o100_600, 0o100_400] {
            assert_eq!(check_mode(mode, "lb.key"), Ok(()));
        }
        for (mode, says) in [
            (0o100_640, "0640"),
            (0o100_604, "0604"),
            (0o100_620, "0620"),
            (0o100_644, "0644"),
        ] {
            let problem = check_mode(mode, "lb.key").unwrap_err();
            assert!(problem.contains(says), "{problem}");
            assert!(problem.contains("`chmod 600 lb.key`"), "{problem}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_told() {
        let whole = "1234567890abcdef".repeat(HASH_KEY_WORDS);
        for (text, says) in [
            (whole[1..].to_owned(), "it has 191 digits"),
            (whole.replacen('5', "x", 1), "character 5 is no such digit"),
            (format!("{}{}", "0".repeat(16), &whole[16..]), "zeros"),
            (String::new(), "it has 0 digits"),
        ] {
            let problem = parse(&text).unwrap_err();
            assert!(problem.contains(says), "{problem}");
            assert!(problem.contains("od -An -vtx1 -N96"), "{problem}");
            assert!(!problem.contains("90abcdef"), "{problem}");
        }
    }
}
