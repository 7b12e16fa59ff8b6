//! The decapsulator on a backend: attached and pinned once, it needs no process.
//!
//! Its pins are under `BPFFS/lbd-decap/INTERFACE`.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::{
    EbpfLoader,
    maps::HashMap,
    programs::{
        Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use lb_common::tables::Address;
use zerocopy::transmute;

use super::{chain, explain, pin_name, remove_link, remove_tree};
use crate::dataplane::DataplaneError;

/// The decapsulator's object, built by `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DECAP_OBJECT"));

fn directory(bpffs: &Path, interface: &str) -> PathBuf {
    bpffs.join("lbd-decap").join(pin_name(interface))
}

/// Unwraps, on `interface`, packets tunnelled to any of `addresses`, by `gue` to `gue_port`, until
/// [`detach`]. Replaces a decapsulator that is there.
///
/// # Errors
/// The kernel refuses; one that was there stays.
pub fn attach(
    bpffs: &Path,
    interface: &str,
    addresses: &[IpAddr],
    gue_port: u16,
    generic: bool,
) -> Result<(), DataplaneError> {
    let doing = format!("attaching the decapsulator to {interface}");
    let failed = |error: &dyn std::error::Error| DataplaneError::new(&*doing, &chain(error));
    let mut ebpf = EbpfLoader::new()
        .override_global("GUE_PORT", &gue_port.to_be(), true)
        .load(OBJECT)
        .map_err(|error| failed(&error))?;
    let map = ebpf
        .map_mut("TERMINATES")
        .ok_or_else(|| DataplaneError::new(&*doing, &"no map TERMINATES"))?;
    let mut terminates: HashMap<_, [u8; 16], u32> =
        HashMap::try_from(map).map_err(|error| failed(&error))?;
    for &address in addresses {
        let key: [u8; 16] = transmute!(Address::from(address));
        terminates
            .insert(key, 1, 0)
            .map_err(|error| failed(&error))?;
    }
    let program = ebpf
        .program_mut("decap")
        .ok_or_else(|| DataplaneError::new(&*doing, &"no program decap"))?;
    let program: &mut Xdp = program.try_into().map_err(|error| failed(&error))?;
    program.load().map_err(|error| failed(&error))?;
    let directory = directory(bpffs, interface);
    let pin = directory.join("link");
    if let Ok(pinned) = PinnedLink::from_pin(&pin) {
        let link = XdpLink::try_from(FdLink::from(pinned)).map_err(|error| failed(&error))?;
        if let Ok(id) = program.attach_to_link(link) {
            return program
                .take_link(id)
                .map(drop)
                .map_err(|error| failed(&error));
        }
        remove_link(&pin).map_err(|error| failed(&error))?;
    }
    let mode = if generic {
        XdpMode::Skb
    } else {
        XdpMode::Driver
    };
    let id = program
        .attach(interface, mode)
        .map_err(|error| DataplaneError::new(&*doing, &explain(&error)))?;
    let link = program.take_link(id).map_err(|error| failed(&error))?;
    let link = FdLink::try_from(link).map_err(|error| failed(&error))?;
    fs::create_dir_all(&directory).map_err(|error| failed(&error))?;
    link.pin(&pin).map(drop).map_err(|error| failed(&error))
}

/// Takes the decapsulator away; does nothing where there is none.
///
/// # Errors
/// Its pin cannot be removed.
pub fn detach(bpffs: &Path, interface: &str) -> io::Result<()> {
    let directory = directory(bpffs, interface);
    let link = directory.join("link");
    if link.exists() {
        remove_link(&link)?;
    }
    remove_tree(&directory)?;
    match directory.parent().map(fs::remove_dir) {
        Some(Err(error))
            if !matches!(
                error.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}
