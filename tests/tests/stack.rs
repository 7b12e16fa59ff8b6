//! A program that needs more stack than there is does not load, and says so on the user's machine.

use anyhow::Result;
use lb_tests::stack::{ALIGNMENT, FORMER_ALIGNMENT, MOST, deepest};
use lb_userspace::dataplane::bpf::LB_OBJECT;

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
