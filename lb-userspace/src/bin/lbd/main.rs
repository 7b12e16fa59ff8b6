//! `lbd`, the agent: arguments, tracing, signals. What it does is in the library.

mod args;
mod interfaces;
mod run;
mod servers;

use std::{
    cell::RefCell,
    fs,
    io::{self, Read as _},
    net::IpAddr,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;
use lb_userspace::{
    config::{self, Config, NamedFile},
    dataplane::bpf::{Mode, Pins, decap},
    instance, store,
};
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Decap, Detach, Verb};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_writer(io::stderr)
        .init();
    let result = match cli.verb {
        Verb::Run(arguments) if arguments.check => check(arguments.config.as_deref()),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Check { config } => check(Some(&config)),
        Verb::Detach(arguments) => detach(&arguments),
        Verb::Decap(arguments) => decapsulate(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lbd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration and its text, with what identifies the files that it names; nothing configured where there is no
/// file.
fn read_config(path: Option<&Path>) -> Result<(Config, String)> {
    let Some(path) = path else {
        return Ok((Config::default(), String::new()));
    };
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let files = RefCell::new(text.clone());
    let read = |name: &str| {
        // Beside the configuration, unless said otherwise.
        let path = path.parent().unwrap_or(Path::new("")).join(name);
        let (text, mode) = read_with_mode(&path).map_err(|error| error.to_string())?;
        let mark = format!("\n# {name}: {:016x}", store::fingerprint(text.as_bytes()));
        files.borrow_mut().push_str(&mark);
        Ok(NamedFile { text, mode })
    };
    match config::parse_with(&text, &path.display().to_string(), &read) {
        Ok(config) => Ok((config, files.into_inner())),
        Err(errors) => {
            let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
            bail!(
                "the configuration has {} mistake(s):\n{}",
                errors.len(),
                lines.join("\n")
            )
        }
    }
}

/// A file's text, and its mode as it was when it was opened.
fn read_with_mode(path: &Path) -> io::Result<(String, u32)> {
    let mut file = fs::File::open(path)?;
    let mode = file.metadata()?.mode();
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((text, mode))
}

fn check(path: Option<&Path>) -> Result<()> {
    let (config, _) = read_config(path)?;
    for warning in &config.warnings {
        println!("warning: {warning}");
    }
    println!("ok: {} services", config.services.len());
    Ok(())
}

fn detach(arguments: &Detach) -> Result<()> {
    let name = &arguments.name;
    let socket = arguments
        .socket
        .clone()
        .unwrap_or_else(|| instance::socket_path(name));
    // Also where it is another instance's: its socket is not to go.
    if UnixStream::connect(&socket).is_ok() {
        bail!(
            "instance {name} is running (it answers at {}): stop it first",
            socket.display()
        );
    }
    Pins::new(&arguments.bpffs, name).remove()?;
    let kept = [instance::state_path(name), instance::history_path(name)];
    for leftover in kept.into_iter().chain([socket]) {
        store::remove(&leftover).with_context(|| format!("removing {}", leftover.display()))?;
    }
    Ok(())
}

fn decapsulate(arguments: &Decap) -> Result<()> {
    let Decap {
        interface, bpffs, ..
    } = arguments;
    if arguments.detach {
        return decap::detach(bpffs, interface).context("removing the decapsulator's pins");
    }
    if arguments.counters {
        for (what, count) in decap::counted(interface)? {
            println!("{what}: {count}");
        }
        return Ok(());
    }
    let addresses = match arguments.address.as_slice() {
        [] => addresses_of(interface)?,
        given => given.to_vec(),
    };
    let mode = if arguments.generic {
        Mode::Generic
    } else {
        Mode::Native
    };
    let options = decap::Options {
        addresses: &addresses,
        gue_port: arguments.gue_port,
        second_hop: arguments.second_hop,
    };
    decap::attach(bpffs, interface, options, mode)?;
    let mode = mode.name();
    println!(
        "unwrapping on {interface} in {mode} mode: {addresses:?}; `lbd decap --interface {interface} --detach` ends it"
    );
    Ok(())
}

fn addresses_of(interface: &str) -> Result<Vec<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs().context("asking for the interface's addresses")?;
    let addresses: Vec<IpAddr> = all
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    if addresses.is_empty() {
        bail!("interface {interface} has no address, or is not there: give one by --address");
    }
    Ok(addresses)
}
