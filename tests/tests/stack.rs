//! A program that needs more stack than there is, or more of the verifier's patience, does not load, and says so on the user's
//! machine.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use lb_common::{tables::feature, wire};
use lb_tests::{
    skip::with_root,
    stack::{ALIGNMENT, FORMER_ALIGNMENT, MOST, deepest},
};
use lb_userspace::dataplane::{
    Capacity,
    bpf::{LB_OBJECT, LoadOptions, Program, decap},
};

/// Kept free for compilers that spill more. What needs it frees as much elsewhere, before this does not
/// load for somebody.
const HEADROOM: u32 = 16;

#[test]
fn no_chain_of_calls_comes_near_the_end_of_the_stack() -> Result<()> {
    no_chain_is_deeper(ALIGNMENT, MOST - HEADROOM)
}

#[test]
fn every_chain_of_calls_fits_kernels_that_round_frames_up_further() -> Result<()> {
    no_chain_is_deeper(FORMER_ALIGNMENT, MOST)
}

fn no_chain_is_deeper(alignment: u32, most: u32) -> Result<()> {
    let chains = deepest(LB_OBJECT, alignment)?;
    for chain in &chains {
        println!("{} bytes: {:?}", chain.depth(), chain.frames);
    }
    let names = chains.iter().filter_map(|chain| chain.frames.first());
    assert!(
        names.map(|(name, _)| name).any(|name| name == "lb"),
        "{chains:?}"
    );
    for chain in chains {
        assert!(chain.depth() <= most, "{chain:?}");
    }
    Ok(())
}

/// Instructions that the verifier goes through before it gives up (`BPF_COMPLEXITY_LIMIT_INSNS`,
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/bpf.h>), and what is kept free of them for other kernels and compilers.
const PATIENCE: u32 = 1_000_000;
const SPARE: u32 = 250_000;

/// Instructions that the verifier has gone through, of each program that is loaded.
fn verified(ebpf: &mut Ebpf) -> Result<BTreeMap<String, u32>> {
    let mut verified = BTreeMap::new();
    for (name, program) in ebpf.programs_mut() {
        // One that nothing needs is not loaded.
        let Ok(info) = program.info() else { continue };
        let count = info.verified_instruction_count();
        verified.insert(name.to_owned(), count.context("the kernel tells no count")?);
    }
    Ok(verified)
}

#[test]
fn no_program_comes_near_the_end_of_the_verifiers_patience() -> Result<()> {
    with_root(
        "no_program_comes_near_the_end_of_the_verifiers_patience",
        || {
            let (mut program, _) = Program::load(&LoadOptions {
                pins: None,
                capacity: Capacity {
                    services: 64,
                    backends: 256,
                    members: 1_024,
                    slots: 1 << 16,
                    flows: 512,
                    half_open: 256,
                    fragments: 1_024,
                    access_prefixes: 4_096,
                    sources: 1_024,
                    sessions: 96,
                },
                features: feature::ALL,
                log_level: 0,
            })?;
            let mut all = verified(program.ebpf())?;
            all.extend(verified(&mut decap::load(decap::Options {
                addresses: &[],
                gue_port: wire::GUE_PORT,
                second_hop: true,
            })?)?);
            for (name, count) in &all {
                println!("{count} instructions verified of {name}");
            }
            assert!(
                all.contains_key("lb") && all.contains_key("decap"),
                "{all:?}"
            );
            for (name, count) in all {
                assert!(count <= PATIENCE - SPARE, "{count} of {name}");
            }
            Ok(())
        },
    )
}
