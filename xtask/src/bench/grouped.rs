//! Large numbers as people read them.

/// 1000000 as 1,000,000. What is behind the point is rounded.
pub(crate) fn grouped(number: impl Into<f64>) -> String {
    let digits = format!("{:.0}", number.into());
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let numbers = [0, 999, 1_000, 65_536, 1_000_000];
        let texts = ["0", "999", "1,000", "65,536", "1,000,000"];
        assert_eq!(numbers.map(grouped), texts);
    }
}
