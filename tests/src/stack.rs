//! How much stack a BPF object's programs need: the frames of every chain of calls, as the kernel adds
//! them up before it loads a program. Reads the object alone, for the verifier tells its sums only to
//! those who it refuses.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SymbolKind,
    read::elf::ElfFile64,
};

/// What a chain of calls may use (`MAX_BPF_STACK`,
/// <https://github.com/torvalds/linux/blob/v6.18/include/linux/filter.h>).
pub const MOST: u32 = 512;
/// What every frame takes a multiple of, with a JIT (`round_up_stack_depth`,
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/verifier.c>).
pub const ALIGNMENT: u32 = 16;
/// The same of older kernels (`check_max_stack_depth`,
/// <https://github.com/torvalds/linux/blob/v6.1/kernel/bpf/verifier.c>).
pub const FORMER_ALIGNMENT: u32 = 32;

/// Bytes of an instruction; two make a 64-bit load.
const INSTRUCTION: usize = 8;
const LOAD_64: u8 = 0x18;
const CALL: u8 = 0x85;
/// [`CALL`]'s source register where it calls a function of the program.
const OF_PROGRAM: u8 = 1;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
/// The frame's end.
const FRAME: u8 = 10;

/// A chain of calls, from a program down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Functions and the bytes of their frames, rounded up.
    pub frames: Vec<(String, u32)>,
}

impl Chain {
    /// Bytes in all.
    pub fn depth(&self) -> u32 {
        self.frames.iter().map(|(_, frame)| frame).sum()
    }
}

#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn read(bytes: &[u8]) -> Self {
        let [code, registers, o0, o1, i0, i1, i2, i3] = *bytes else {
            unreachable!("chunks of {INSTRUCTION}")
        };
        Self {
            code,
            destination: registers & 0xf,
            source: registers >> 4,
            offset: i16::from_le_bytes([o0, o1]),
            immediate: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    /// How far below its end it reaches into the frame.
    fn reach(self, next: Option<Self>) -> u32 {
        let below = |offset: i32| offset.min(0).unsigned_abs();
        match (self.code & 7, self.code) {
            // Loads from memory; stores to it.
            (1, _) if self.source == FRAME => below(self.offset.into()),
            (2 | 3, _) if self.destination == FRAME => below(self.offset.into()),
            // The address of a local variable.
            (_, MOVE) if self.source == FRAME => next
                .filter(|next| next.code == ADD && next.destination == self.destination)
                .map_or(0, |next| below(next.immediate)),
            _ => 0,
        }
    }
}

/// Where a function is: its section, and its first byte in there.
type Place = (usize, u64);

struct Function {
    name: String,
    frame: u32,
    calls: BTreeSet<Place>,
}

/// The deepest chain of each program of an object, where every frame takes a multiple of `alignment` bytes.
///
/// # Errors
/// It is no object of little-endian BPF, a call leads nowhere, or functions call each other in turns.
pub fn deepest(object: &[u8], alignment: u32) -> Result<Vec<Chain>> {
    let file: ElfFile64<'_> = ElfFile64::parse(object).context("the object")?;
    let functions = functions(&file, alignment)?;
    let called: BTreeSet<Place> = functions.values().flat_map(|f| f.calls.clone()).collect();
    let programs = functions.keys().filter(|place| !called.contains(place));
    programs
        .map(|&place| deepest_from(&functions, place, functions.len()))
        .collect()
}

fn deepest_from(
    functions: &BTreeMap<Place, Function>,
    place: Place,
    patience: usize,
) -> Result<Chain> {
    ensure!(patience > 0, "functions call each other in turns");
    let function = functions.get(&place);
    let function = function.with_context(|| format!("there is no function at {place:?}"))?;
    let mut deepest = Chain { frames: Vec::new() };
    for &called in &function.calls {
        let chain = deepest_from(functions, called, patience - 1)?;
        if chain.depth() > deepest.depth() {
            deepest = chain;
        }
    }
    let own = (function.name.clone(), function.frame);
    deepest.frames.insert(0, own);
    Ok(deepest)
}

fn functions(file: &ElfFile64<'_>, alignment: u32) -> Result<BTreeMap<Place, Function>> {
    let mut functions = BTreeMap::new();
    for symbol in file
        .symbols()
        .filter(|s| s.kind() == SymbolKind::Text && s.size() > 0)
    {
        let index = symbol.section_index().context("a function in no section")?;
        let section = file.section_by_index(index)?;
        let (from, to) = (
            symbol.address() as usize,
            (symbol.address() + symbol.size()) as usize,
        );
        let data = section.data()?;
        let code = data
            .get(from..to)
            .context("a function beyond its section")?;
        let code: Vec<Instruction> = code
            .chunks_exact(INSTRUCTION)
            .map(Instruction::read)
            .collect();
        let relocated = relocated_calls(file, index)?;
        let place = (index.0, symbol.address());
        let function = Function {
            name: symbol.name()?.to_owned(),
            frame: frame(&code, alignment),
            calls: calls(&code, place, &relocated)?,
        };
        functions.insert(place, function);
    }
    Ok(functions)
}

fn frame(code: &[Instruction], alignment: u32) -> u32 {
    let nexts = code.iter().copied().skip(1).map(Some).chain([None]);
    let reaches = code.iter().zip(nexts).map(|(own, next)| own.reach(next));
    reaches
        .max()
        .unwrap_or(0)
        .max(1)
        .next_multiple_of(alignment)
}

/// The symbols that instructions of a section are to be linked with, by their place: section and value.
fn relocated_calls(file: &ElfFile64<'_>, index: SectionIndex) -> Result<BTreeMap<u64, Place>> {
    let section = file.section_by_index(index)?;
    let mut targets = BTreeMap::new();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            bail!("a relocation without a symbol at {offset}");
        };
        let symbol = file.symbol_by_index(symbol)?;
        if let Some(section) = symbol.section_index() {
            targets.insert(offset, (section.0, symbol.address()));
        }
    }
    Ok(targets)
}

fn calls(
    code: &[Instruction],
    (section, start): Place,
    relocated: &BTreeMap<u64, Place>,
) -> Result<BTreeSet<Place>> {
    let mut calls = BTreeSet::new();
    let mut skip = false;
    for (instruction, number) in code.iter().zip(0u64..) {
        if std::mem::take(&mut skip) {
            continue;
        }
        skip = instruction.code == LOAD_64;
        if instruction.code != CALL || instruction.source != OF_PROGRAM {
            continue;
        }
        let at = start + number * INSTRUCTION as u64;
        // Counted in instructions from the next one, or from the symbol that it is linked with.
        let ahead = (i64::from(instruction.immediate) + 1) * INSTRUCTION as i64;
        let place = match relocated.get(&at) {
            Some(&(section, value)) => (section, value.checked_add_signed(ahead)),
            None => (section, at.checked_add_signed(ahead)),
        };
        let (section, Some(address)) = place else {
            bail!("a call at {at} that leads before its section");
        };
        calls.insert((section, address));
    }
    Ok(calls)
}
