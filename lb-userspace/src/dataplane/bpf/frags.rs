//! Frames in several buffers, longer than a page, which links with MTUs above some 3,500 bytes bring. The objects are
//! built for them; this makes the decapsulator's fit for a backend whose kernel has none (before Linux 5.18). The load
//! balancer's takes a newer one for other reasons. Loads nothing.

use std::borrow::Cow;

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

/// The objects' global that says whether there are such frames.
pub(super) const MULTI_BUFFER: &str = "MULTI_BUFFER";

/// The section of programs that take such frames, as it stands among an object's names, and that of the others. Loaders
/// ask the kernel for what the name says, and kernels refuse what they do not know.
const TAKES: &[u8] = b"xdp.frags\0";
const TAKES_NONE: &[u8] = b"xdp\0";

/// An object as it is to be loaded.
pub(super) struct Fitted {
    pub object: Cow<'static, [u8]>,
    /// The value of [`MULTI_BUFFER`].
    pub multi_buffer: u8,
}

/// An object as this kernel takes it.
pub(super) fn fit(object: &'static [u8]) -> Fitted {
    fit_for(object, kernel_has_them())
}

/// Both came with the same kernel. Where that cannot be told, loading tells it.
fn kernel_has_them() -> bool {
    let helper = BpfHelper::BPF_FUNC_xdp_get_buff_len;
    is_helper_supported(ProgramType::Xdp, helper).unwrap_or(true)
}

fn fit_for(object: &'static [u8], has_them: bool) -> Fitted {
    Fitted {
        object: if has_them {
            object.into()
        } else {
            renamed(object.to_vec()).into()
        },
        multi_buffer: has_them.into(),
    }
}

/// Gives the sections of all programs the other name: in the table of sections, and in that of the types, which has to
/// agree. It is shorter, and what is left of the former one is a string that nothing refers to.
fn renamed(mut object: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(place) = object.get_mut(at..at + TAKES.len()) {
        if place == TAKES {
            place[..TAKES_NONE.len()].copy_from_slice(TAKES_NONE);
        }
        at += 1;
    }
    object
}

#[cfg(test)]
mod tests {
    use super::{super::LB_OBJECT, *};

    /// Of each program, whether it takes such frames.
    fn programs(object: &[u8]) -> Vec<bool> {
        let object = aya_obj::Object::parse(object).expect("an object");
        let sections = object.programs.values().map(|program| &program.section);
        let takes = sections.map(|section| match section {
            aya_obj::ProgramSection::Xdp { frags, .. } => *frags,
            other => panic!("{other:?} is no XDP program"),
        });
        takes.collect()
    }

    #[test]
    fn all_programs_take_such_frames_where_the_kernel_has_them_and_none_elsewhere() {
        for has_them in [true, false] {
            let fitted = fit_for(LB_OBJECT, has_them);
            let programs = programs(&fitted.object);
            assert!(programs.len() > 10, "{programs:?}");
            assert!(programs.iter().all(|&takes| takes == has_them));
            assert_eq!(fitted.multi_buffer, u8::from(has_them));
        }
    }

    #[test]
    fn every_name_is_replaced_and_nothing_else() {
        let object = b"\0.relxdp.frags\0xdp.frags\0xdp.frag\0xdp.frags".to_vec();
        let expected = b"\0.relxdp\0frags\0xdp\0frags\0xdp.frag\0xdp.frags";
        assert_eq!(renamed(object), expected);
    }
}
