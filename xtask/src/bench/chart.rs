//! The picture for the README: a bar for each peer under what says most about an experiment. Readable on
//! light and dark pages, and without fonts of its own.

use std::fmt::Write as _;

use super::{
    experiment::Experiment,
    machine::Machine,
    peer::Peer,
    quantity::Quantity,
    report::{Report, Row},
};

const WIDTH: u32 = 860;
const COLUMNS: u32 = 2;
const PANEL: u32 = WIDTH / COLUMNS;
/// Of names, and of the longest bar.
const NAMES: u32 = 96;
const BAR: u32 = 240;
const LINE: u32 = 22;
const TITLE: u32 = 34;
const MARGIN: u32 = 16;

const STYLE: &str = "
    text { font: 13px sans-serif; fill: #1f2328 }
    .title { font-weight: bold }
    .small { font-size: 11px; fill: #59636e }
    .other { fill: #8c959f }
    .tproxy { fill: #0969da }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .small { fill: #9198a1 }
      .other { fill: #656c76 }
      .tproxy { fill: #4493f8 }
    }";

/// An SVG document.
pub(super) fn of(report: &Report) -> String {
    let is_shown = |row: &&Row| {
        row.quantity == row.experiment.headline() && row.experiment != Experiment::Rest
    };
    let rows: Vec<_> = report.rows.iter().filter(is_shown).collect();
    let mut body = String::new();
    let mut top = MARGIN;
    for pair in rows.chunks(2) {
        let mut left = MARGIN;
        for row in pair {
            panel(&mut body, row, left, top);
            left += PANEL;
        }
        let bars = pair.iter().map(|row| row.cells.len()).max().unwrap_or(0);
        top += TITLE + LINE * u32::try_from(bars).unwrap_or(0) + MARGIN;
    }
    let Machine { kernel, cores, .. } = &report.machine;
    // What a distribution adds to it tells a reader of the README nothing.
    let kernel = kernel.split('-').next().unwrap_or(kernel);
    let _ = write!(
        body,
        "\n  <text class=\"small\" x=\"{MARGIN}\" y=\"{}\">Linux {}, {cores} cores shared by client, proxy and server; \
         medians. Differences under 15 % are noise. -tb: nft rules in the guides' order.</text>",
        top + 8,
        escaped(kernel)
    );
    let height = top + 2 * MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n  <title>tproxy beside other ways from a client to a server</title>\n  <style>{STYLE}\n  \
         </style>{body}\n</svg>\n"
    )
}

/// The bars of one quantity.
fn panel(body: &mut String, row: &Row, left: u32, top: u32) {
    let quantity = row.quantity;
    let better = if quantity.is_gain() {
        "more is better"
    } else {
        "less is better"
    };
    let _ = write!(
        body,
        "\n  <text class=\"title\" x=\"{left}\" y=\"{}\">{}</text>\n  <text class=\"small\" x=\"{left}\" y=\"{}\">{}; {better}</text>",
        top + 4,
        escaped(row.experiment.title()),
        top + 20,
        escaped(&described(quantity)),
    );
    let most = row
        .cells
        .values()
        .map(|cell| cell.value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut y = top + TITLE;
    for (peer, cell) in &row.cells {
        let class = if *peer == Peer::Tproxy {
            "tproxy"
        } else {
            "other"
        };
        // One pixel for nothing: there was a measurement.
        let length = (f64::from(BAR) * cell.value / most).max(1.0);
        let (bar, text) = (left + NAMES, y + 12);
        let _ = write!(
            body,
            "\n  <text x=\"{left}\" y=\"{text}\">{}</text>\n  <rect class=\"{class}\" x=\"{bar}\" y=\"{y}\" \
             width=\"{length:.1}\" height=\"15\" rx=\"2\"/>\n  <text x=\"{:.1}\" y=\"{text}\">{}</text>",
            peer.head(),
            f64::from(bar) + length + 6.0,
            quantity.text(cell.value),
        );
        y += LINE;
    }
}

fn described(quantity: Quantity) -> String {
    match quantity.unit() {
        "" => quantity.name().to_owned(),
        unit => format!("{}, {unit}", quantity.name()),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
