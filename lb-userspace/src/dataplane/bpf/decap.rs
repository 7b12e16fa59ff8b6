//! The decapsulator on a backend: attached and pinned once, it needs no process.
//!
//! Its link is pinned under `BPFFS/lbd-decap/INTERFACE`.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::{Ebpf, EbpfLoader, maps::HashMap, programs::Xdp};
use lb_common::tables::Address;
use zerocopy::transmute;

use super::{
    chain, frags,
    links::{Links, Mode, pin_name},
    pins::{entries, remove_if_empty, remove_link, remove_tree},
    refused,
};
use crate::dataplane::DataplaneError;

/// The decapsulator's object, built by `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DECAP_OBJECT"));

fn directory(bpffs: &Path, interface: &str) -> PathBuf {
    bpffs.join("lbd-decap").join(pin_name(interface))
}

/// Unwraps, on `interface`, packets tunnelled to any of `addresses`, by `gue` to `gue_port`, until
/// [`detach`]. Replaces a decapsulator that is there, in one step unless the mode is another.
///
/// # Errors
/// The kernel refuses; one that was there stays.
pub fn attach(
    bpffs: &Path,
    interface: &str,
    addresses: &[IpAddr],
    gue_port: u16,
    mode: Mode,
) -> Result<(), DataplaneError> {
    let doing = format!("loading the decapsulator for {interface}");
    let failed = |error: &dyn std::error::Error| DataplaneError::new(&*doing, &chain(error));
    let fitted = frags::fit(OBJECT);
    let mut ebpf = EbpfLoader::new()
        .override_global("GUE_PORT", &gue_port.to_be(), true)
        .override_global(frags::MULTI_BUFFER, &fitted.multi_buffer, true)
        .load(&fitted.object)
        .map_err(|error| refused(&*doing, &error))?;
    terminate(&mut ebpf, addresses)?;
    let program = ebpf
        .program_mut("decap")
        .ok_or_else(|| DataplaneError::new(&*doing, &"no program decap"))?;
    let program: &mut Xdp = program.try_into().map_err(|error| failed(&error))?;
    program.load().map_err(|error| refused(&*doing, &error))?;
    let links = Links::new(directory(bpffs, interface), Vec::new());
    let attached = links.attach(program, interface, &[mode]).map(drop);
    if attached.is_err() && !links.has(interface) {
        // Nothing was there, and nothing is to be left. The refusal says more than a failure here.
        drop(remove_directory(bpffs, interface));
    }
    attached
}

/// Has packets to `addresses` unwrapped.
fn terminate(ebpf: &mut Ebpf, addresses: &[IpAddr]) -> Result<(), DataplaneError> {
    let doing = "telling the decapsulator its addresses";
    let failed = |error: &dyn std::error::Error| DataplaneError::new(doing, &chain(error));
    let map = ebpf
        .map_mut("TERMINATES")
        .ok_or_else(|| DataplaneError::new(doing, &"no map TERMINATES"))?;
    let mut terminates: HashMap<_, [u8; 16], u32> =
        HashMap::try_from(map).map_err(|error| failed(&error))?;
    for &address in addresses {
        let key: [u8; 16] = transmute!(Address::from(address));
        terminates
            .insert(key, 1, 0)
            .map_err(|error| failed(&error))?;
    }
    Ok(())
}

/// Takes the decapsulator away; does nothing where there is none.
///
/// # Errors
/// Its pin cannot be removed.
pub fn detach(bpffs: &Path, interface: &str) -> io::Result<()> {
    let links = entries(&directory(bpffs, interface))?;
    links.iter().try_for_each(|link| remove_link(link))?;
    remove_directory(bpffs, interface)
}

fn remove_directory(bpffs: &Path, interface: &str) -> io::Result<()> {
    let directory = directory(bpffs, interface);
    remove_tree(&directory)?;
    directory.parent().map_or(Ok(()), remove_if_empty)
}
