//! Enums of two values as one bit of a word.

/// Gives an enum of two values its number and the way back: `one_bit!(Family::{V4, V6})`.
macro_rules! one_bit {
    ($name:ident::{$zero:ident, $one:ident}) => {
        const _: () = assert!($name::$zero as u8 == 0 && $name::$one as u8 == 1);

        impl $name {
            /// Its number, of one bit.
            #[must_use]
            #[inline(always)]
            pub const fn bit(self) -> u8 {
                self as u8
            }

            /// The one with this number, of which only the lowest bit counts. No branch comes of it,
            /// which the verifier would follow both ways.
            #[must_use]
            #[inline(always)]
            pub const fn from_bit(bit: u8) -> Self {
                // SAFETY: both values of a bit are values of it, as asserted above.
                unsafe { core::mem::transmute::<u8, Self>(bit & 1) }
            }
        }
    };
}

pub(crate) use one_bit;
