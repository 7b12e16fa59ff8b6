//! A command as a value: planned, printed and run from the same description.
//! Never decides which commands are needed.

use std::fmt;
use std::process::Command;

/// A program with its arguments and the changes to its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Invocation {
    /// Describes `program` with `arguments`.
    pub fn new<S: Into<String>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Self {
        Self {
            program: program.to_owned(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: Vec::new(),
        }
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command to run, free of what the outer cargo left in the environment.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        forget_outer_cargo(&mut command);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// Prints a line to paste into a shell.
impl fmt::Display for Invocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.environment {
            write!(formatter, "{name}={} ", quoted(value))?;
        }
        write!(formatter, "{}", quoted(&self.program))?;
        for argument in &self.arguments {
            write!(formatter, " {}", quoted(argument))?;
        }
        Ok(())
    }
}

/// A word as a shell has to be given it.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Removes what the cargo around this process set for its own toolchain and packages: another
/// toolchain's cargo would follow it, and build with the wrong compiler or flags.
pub fn forget_outer_cargo(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(belongs_to_outer_cargo) {
            command.env_remove(name);
        }
    }
}

fn belongs_to_outer_cargo(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "CARGO",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
        "RUSTUP_TOOLCHAIN",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "LD_LIBRARY_PATH",
    ];
    const PREFIXES: [&str; 6] = [
        "CARGO_BUILD_",
        "CARGO_MANIFEST_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_TARGET_",
        "CARGO_UNSTABLE_",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_line_can_be_pasted_into_a_shell() {
        let line =
            Invocation::new("sh", ["-c", "echo 'a b'"]).env("LLVM_PREFIX", "/usr/lib/llvm-22");
        assert_eq!(
            line.to_string(),
            r"LLVM_PREFIX=/usr/lib/llvm-22 sh -c 'echo '\''a b'\'''"
        );
    }

    #[test]
    fn toolchain_choice_of_the_outer_cargo_is_forgotten() {
        for name in [
            "CARGO",
            "RUSTUP_TOOLCHAIN",
            "RUSTFLAGS",
            "CARGO_PKG_NAME",
            "CARGO_PROFILE_RELEASE_LTO",
        ] {
            assert!(belongs_to_outer_cargo(name), "{name}");
        }
    }

    #[test]
    fn network_and_home_settings_of_cargo_are_kept() {
        for name in [
            "CARGO_HOME",
            "RUSTUP_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_CAINFO",
            "CARGO_REGISTRIES_X_INDEX",
            "PATH",
        ] {
            assert!(!belongs_to_outer_cargo(name), "{name}");
        }
    }
}
