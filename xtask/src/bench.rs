//! The verb `bench`: one benchmark, or all there are.
//!
//! A benchmark `NAME` is the program `bench-NAME` of the tests' package; this verb knows no others
//! and measures nothing itself.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::build;
use crate::outcome::{become_program, exit_code};
use crate::project::{Metadata, Project};
use crate::run::require_root;
use crate::setup;

const PREFIX: &str = "bench-";

/// The verb's arguments.
#[derive(clap::Args)]
pub struct Arguments {
    /// A benchmark's name (all without) and its arguments, such as `packet --format json --quick`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "[NAME] ARGUMENTS"
    )]
    passed_on: Vec<String>,
}

/// What was asked for.
#[derive(Debug, PartialEq, Eq)]
struct Selection<'a> {
    names: Vec<&'a str>,
    arguments: &'a [String],
}

/// Sets up, builds and measures.
pub fn run(project: &Project, arguments: &Arguments) -> Result<ExitCode> {
    require_root("bench", &arguments.passed_on)?;
    let metadata = project.metadata()?;
    let known = known(&metadata);
    let selection = select(&known, &arguments.passed_on)?;
    let facts = setup::ensure(project, setup::LOAD)?;
    build::everything(project, setup::toolchain_of(&facts)?)?;
    if let [name] = selection.names[..] {
        return become_program(
            &mut program(project, &metadata, name, selection.arguments)?,
            name,
        );
    }
    let mut ok = true;
    for name in selection.names {
        eprintln!("bench {name}");
        ok &= program(project, &metadata, name, selection.arguments)?
            .status()?
            .success();
    }
    Ok(exit_code(ok))
}

/// The benchmarks there are.
pub fn known(metadata: &Metadata) -> Vec<String> {
    metadata
        .programs()
        .iter()
        .filter_map(|name| name.strip_prefix(PREFIX))
        .map(str::to_owned)
        .collect()
}

/// The built benchmark `name`, to be run with `arguments`.
pub fn program(
    project: &Project,
    metadata: &Metadata,
    name: &str,
    arguments: &[String],
) -> Result<Command> {
    let mut command = Command::new(metadata.release_bin()?.join(format!("{PREFIX}{name}")));
    command
        .args(arguments)
        .env("LB_BPF_OBJECTS", project.objects());
    Ok(command)
}

/// The first argument names a benchmark unless it is an option.
fn select<'a>(known: &'a [String], arguments: &'a [String]) -> Result<Selection<'a>> {
    match arguments {
        [name, rest @ ..] if !name.starts_with('-') => {
            if !known.contains(name) {
                bail!(
                    "there is no benchmark `{name}`; there is: {}",
                    known.join(", ")
                );
            }
            Ok(Selection {
                names: vec![name],
                arguments: rest,
            })
        }
        _ if known.is_empty() => bail!("the tests' package has no program named {PREFIX}NAME"),
        _ => Ok(Selection {
            names: known.iter().map(String::as_str).collect(),
            arguments,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn named_benchmark_gets_the_rest_of_the_line() {
        let (known, line) = (
            words(&["packet", "net"]),
            words(&["packet", "--format", "json"]),
        );
        let selection = select(&known, &line).unwrap();
        assert_eq!(selection.names, ["packet"]);
        assert_eq!(selection.arguments, ["--format", "json"]);
    }

    #[test]
    fn without_a_name_all_benchmarks_get_the_options() {
        let (known, line) = (words(&["packet", "net"]), words(&["--quick"]));
        let selection = select(&known, &line).unwrap();
        assert_eq!(selection.names, ["packet", "net"]);
        assert_eq!(selection.arguments, ["--quick"]);
    }

    #[test]
    fn unknown_benchmark_is_refused_with_those_there_are() {
        let (known, line) = (words(&["packet"]), words(&["paket"]));
        let message = select(&known, &line).unwrap_err().to_string();
        assert!(
            message.contains("`paket`") && message.contains("there is: packet"),
            "{message}"
        );
    }
}
