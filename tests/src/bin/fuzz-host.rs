//! The coverage-guided fuzzer of the packet path on the host, by libFuzzer: its options, and folders of inputs, are
//! the arguments. `cargo xtask fuzz` builds it with the instrumentation that it needs, and starts it.

#![no_main]

use std::cell::RefCell;

use lb_tests::{
    differential::{frames::Generator, setting::Setting},
    fuzz::{Input, host::Host},
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// The worlds, and how many inputs they have been given, which is told at the end.
struct Run {
    host: Host,
    inputs: u64,
}

impl Drop for Run {
    fn drop(&mut self) {
        let Self { host, inputs } = self;
        eprintln!("host: {} frames in {inputs} inputs", host.frames);
    }
}

thread_local! {
    static RUN: RefCell<Run> = RefCell::new(Run {
        host: Host::new().expect("the worlds of the fuzzer"),
        inputs: 0,
    });
    static GENERATOR: RefCell<Generator> = RefCell::new({
        let setting = Setting::new().expect("the setting of the fuzzer");
        Generator::new(1, setting.endpoints)
    });
}

fuzz_target!(|bytes: &[u8]| {
    RUN.with_borrow_mut(|run| {
        run.inputs += 1;
        if let Err(error) = run.host.run(&Input::decode(bytes)) {
            panic!("{error:#}");
        }
    });
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    GENERATOR.with_borrow_mut(|generator| {
        generator.random.0 = seed.into();
        let mut input = Input::decode(&data[..size]);
        input.mutate(generator, |frame| {
            let length = frame.len();
            frame.resize(length + 64, 0);
            let length = fuzzer_mutate(frame, length, length + 64);
            frame.truncate(length);
        });
        let bytes = input.encode();
        let length = bytes.len().min(max_size);
        data[..length].copy_from_slice(&bytes[..length]);
        length
    })
});
