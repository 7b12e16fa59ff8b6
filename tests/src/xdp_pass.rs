//! An XDP program that passes everything, for the far end of the balancer's veth.
//!
//! veth hands frames of `XDP_TX` over only when the receiving end has a program of its own; NAPI
//! alone (`ethtool -K … gro on`) is not enough: the frames then wait in the ring until something
//! else polls it. It takes frames in several buffers, without which links cannot be wide. See `veth_xdp_flush` in
//! <https://elixir.bootlin.com/linux/v6.12/source/drivers/net/veth.c>. The program is written out
//! as an ELF object here, so that the harness needs no BPF compiler.

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use object::{
    Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope,
    write::{Object, Symbol, SymbolSection},
};

use crate::netns::Namespace;

const NAME: &str = "pass";
/// `r0 = XDP_PASS; exit`.
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// The attached program; detached on drop.
#[derive(Debug)]
pub struct XdpPass {
    _loaded: Ebpf,
}

impl XdpPass {
    /// Attaches it natively to `interface` of `namespace`.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn attach(namespace: &Namespace, interface: &str) -> Result<Self> {
        let mut loaded = Ebpf::load(&object()?).context("loading the pass program")?;
        let program: &mut Xdp = loaded
            .program_mut(NAME)
            .context("the pass program is not in its own object")?
            .try_into()?;
        program.load()?;
        namespace
            .run(|| program.attach(interface, XdpMode::Driver))
            .with_context(|| format!("attaching the pass program to {interface}"))?;
        Ok(Self { _loaded: loaded })
    }
}

fn object() -> Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let code = object.add_section(Vec::new(), b"xdp.frags".to_vec(), SectionKind::Text);
    let value = object.append_section_data(code, &CODE, 8);
    object.add_symbol(Symbol {
        name: NAME.into(),
        value,
        size: CODE.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(code),
        flags: SymbolFlags::None,
    });
    let licence = object.add_section(Vec::new(), b"license".to_vec(), SectionKind::Data);
    object.append_section_data(licence, b"MIT\0", 1);
    object.write().context("writing the pass program")
}
