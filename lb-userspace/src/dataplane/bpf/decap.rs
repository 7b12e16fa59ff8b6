//! The decapsulator on a backend: attached and pinned once, it needs no process.
//!
//! Its link is pinned under `BPFFS/lbd-decap/INTERFACE`.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
    programs::{ProgramError, Xdp},
};
use lb_common::{hand_on::Hop, tables::Address};
use zerocopy::transmute;

use super::{
    chain, frags,
    links::{Links, Mode, pin_name},
    occupant,
    pins::{entries, remove_if_empty, remove_link, remove_tree},
    refused,
};
use crate::dataplane::DataplaneError;

/// The decapsulator's object, built by `cargo xtask build`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("DECAP_OBJECT"));

const LOADING: &str = "loading the decapsulator";

fn directory(bpffs: &Path, interface: &str) -> PathBuf {
    bpffs.join("lbd-decap").join(pin_name(interface))
}

/// How a decapsulator works.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Where tunnels end.
    pub addresses: &'a [IpAddr],
    /// The UDP port of those of mode `gue`.
    pub gue_port: u16,
    /// Whether packets of connections that this host does not know are handed on.
    pub second_hop: bool,
}

/// Unwraps packets on `interface` until [`detach`]. Replaces a decapsulator that is there, in one step unless the mode is another.
///
/// # Errors
/// The kernel refuses; one that was there stays.
pub fn attach(
    bpffs: &Path,
    interface: &str,
    options: Options<'_>,
    mode: Mode,
) -> Result<(), DataplaneError> {
    let mut ebpf = load(options)?;
    let program = xdp(&mut ebpf)?;
    let links = Links::new(directory(bpffs, interface), Vec::new());
    let attached = links.attach(program, interface, &[mode]).map(drop);
    if attached.is_err() && !links.has(interface) {
        // Nothing was there, and nothing is to be left. The refusal says more than a failure here.
        drop(remove_directory(bpffs, interface));
    }
    attached
}

/// The loaded object of a decapsulator, on no interface.
///
/// # Errors
/// The kernel refuses.
pub fn load(options: Options<'_>) -> Result<Ebpf, DataplaneError> {
    let fitted = frags::fit(OBJECT);
    let mut ebpf = EbpfLoader::new()
        .override_global("GUE_PORT", &options.gue_port.to_be(), true)
        .override_global("SECOND_HOP", &u8::from(options.second_hop), true)
        .override_global(frags::MULTI_BUFFER, &fitted.multi_buffer, true)
        .load(&fitted.object)
        .map_err(|error| refused(LOADING, &error))?;
    terminate(&mut ebpf, options.addresses)?;
    xdp(&mut ebpf)?
        .load()
        .map_err(|error| refused(LOADING, &error))?;
    Ok(ebpf)
}

/// The program of such an object.
///
/// # Errors
/// It has none: a defect of the build.
pub fn xdp(ebpf: &mut Ebpf) -> Result<&mut Xdp, DataplaneError> {
    let program = ebpf
        .program_mut("decap")
        .ok_or_else(|| DataplaneError::new(LOADING, &"no program decap"))?;
    program
        .try_into()
        .map_err(|error: ProgramError| DataplaneError::new(LOADING, &chain(&error)))
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

/// What a decapsulator has counted since it was attached: what, and how much of it.
///
/// # Errors
/// There is none on the interface, or the kernel does not tell.
pub fn counted(interface: &str) -> Result<Vec<(&'static str, u64)>, DataplaneError> {
    let doing = format!("reading what the decapsulator on {interface} has counted");
    let failed = |error: &dyn std::error::Error| DataplaneError::new(&*doing, &chain(error));
    let program = occupant::program(interface)
        .filter(|program| program.name_as_str() == Some("decap"))
        .ok_or_else(|| DataplaneError::new(&*doing, &"there is none: `lbd decap` attaches one"))?;
    let ids = program.map_ids().map_err(|error| failed(&error))?;
    let mut found = Vec::new();
    for id in ids.unwrap_or_default() {
        let data = MapData::from_id(id).map_err(|error| failed(&error))?;
        let info = data.info().map_err(|error| failed(&error))?;
        let map = Map::PerCpuArray(data);
        match info.name_as_str() {
            Some("UNWRAPPED") => {
                let [packets, bytes, _] = total::<3>(&map, 0).map_err(|error| failed(&error))?;
                found.extend([("unwrapped packets", packets), ("unwrapped bytes", bytes)]);
            }
            Some("CONGESTED") => {
                let [dropped] = total(&map, 0).map_err(|error| failed(&error))?;
                found.push(("dropped: congestion", dropped));
            }
            Some("HOPS") => {
                for hop in Hop::ALL {
                    let [packets] = total(&map, hop as u32).map_err(|error| failed(&error))?;
                    found.push((hop.name(), packets));
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

/// An element of so many numbers, summed over all CPUs.
fn total<const N: usize>(map: &Map, index: u32) -> Result<[u64; N], MapError>
where
    [u64; N]: aya::Pod,
{
    let array: PerCpuArray<_, [u64; N]> = PerCpuArray::try_from(map)?;
    let mut sums = [0u64; N];
    for values in array.get(&index, 0)?.iter() {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = sum.wrapping_add(*value);
        }
    }
    Ok(sums)
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
