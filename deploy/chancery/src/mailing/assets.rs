//! What is attached to the sample letters: a notice as PDF, a QR code as PNG.
//! Not a typesetter: one page, one typeface, lines as they are given.

use qrcode::{Color, QrCode};

/// A PDF 1.4 file (ISO 32000-1) of one A4 page with `lines` in Helvetica, the
/// first one large. Lines are not wrapped: up to some 85 characters fit the
/// width; beyond 50 lines the type becomes smaller. Characters that
/// WinAnsiEncoding lacks become question marks.
pub fn notice_pdf(lines: &[&str]) -> Vec<u8> {
    /// Height of the text in points: 842 for A4, less margins.
    const HEIGHT: f64 = 742.0;
    let leading = (HEIGHT / (lines.len() as f64 + 1.0)).min(14.5);
    let size = leading * 0.76;
    let mut text = format!("BT\n{leading:.2} TL\n56 792 Td\n/F1 {:.2} Tf\n", size * 1.4);
    for (index, line) in lines.iter().enumerate() {
        text.push_str(&format!("({}) Tj T*\n", literal(line)));
        if index == 0 {
            text.push_str(&format!("T*\n/F1 {size:.2} Tf\n"));
        }
    }
    text.push_str("ET\n");

    let page = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R \
                /Resources << /Font << /F1 5 0 R >> >> >>";
    let font = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>";
    let objects = [
        "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
        page.to_owned(),
        format!("<< /Length {} >>\nstream\n{text}endstream", text.len()),
        font.to_owned(),
    ];
    let mut pdf = "%PDF-1.4\n".to_owned();
    let mut table = format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for (index, object) in objects.iter().enumerate() {
        table.push_str(&format!("{:010} 00000 n \n", pdf.len()));
        pdf.push_str(&format!("{} 0 obj\n{object}\nendobj\n", index + 1));
    }
    let start = pdf.len();
    let size = objects.len() + 1;
    pdf.push_str(&format!("{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"));
    pdf.into_bytes()
}

/// The inside of a PDF string (ISO 32000-1 §7.3.4.2) in WinAnsiEncoding, all ASCII.
fn literal(line: &str) -> String {
    let mut literal = String::with_capacity(line.len());
    for c in line.chars() {
        match win_ansi(c) {
            byte @ (b'(' | b')' | b'\\') => literal.extend(['\\', char::from(byte)]),
            byte @ b' '..=b'~' => literal.push(char::from(byte)),
            byte => literal.push_str(&format!("\\{byte:03o}")),
        }
    }
    literal
}

/// A character's code (ISO 32000-1, annex D.2).
fn win_ansi(c: char) -> u8 {
    match c {
        ' '..='~' | '\u{a0}'..='\u{ff}' => u8::try_from(u32::from(c)).unwrap_or(b'?'),
        '€' => 0x80,
        '…' => 0x85,
        'Œ' => 0x8c,
        '‘' => 0x91,
        '’' => 0x92,
        '“' => 0x93,
        '”' => 0x94,
        '•' => 0x95,
        '–' => 0x96,
        '—' => 0x97,
        'œ' => 0x9c,
        _ => b'?',
    }
}

/// A picture cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// The text does not fit a QR code (2,331 bytes at most).
    #[error("the text does not fit a QR code: {0}")]
    Qr(#[from] qrcode::types::QrError),
    /// The PNG cannot be written.
    #[error("the PNG cannot be written: {0}")]
    Png(#[from] png::EncodingError),
}

/// Light modules around the code (ISO/IEC 18004 §6.3.8).
const QUIET: usize = 4;

/// A PNG, black and white, with `text` as QR code of error correction level
/// M; a module is 8 by 8 pixels.
pub fn qr_png(text: &str) -> Result<Vec<u8>, AssetError> {
    let code = QrCode::new(text)?;
    let side = code.width() + 2 * QUIET;
    // One bit a pixel, so that one byte is a module's share of a line.
    let mut pixels = vec![0xff; side * side * 8];
    for y in 0..code.width() {
        for x in (0..code.width()).filter(|x| code[(*x, y)] == Color::Dark) {
            for line in (QUIET + y) * 8..(QUIET + y) * 8 + 8 {
                pixels[line * side + QUIET + x] = 0;
            }
        }
    }
    let mut file = Vec::new();
    let pixels_wide = u32::try_from(side * 8).unwrap_or(u32::MAX);
    let mut encoder = png::Encoder::new(&mut file, pixels_wide, pixels_wide);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    writer.finish()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Object `number` as the cross-reference table of `pdf` finds it.
    fn object(pdf: &str, number: usize) -> &str {
        let start: usize = pdf.lines().rev().nth(1).unwrap().parse().unwrap();
        let table = pdf[start..].strip_prefix("xref\n0 6\n").unwrap();
        let entry = &table[20 * number..20 * (number + 1)];
        let offset: usize = entry.strip_suffix(" 00000 n \n").unwrap().parse().unwrap();
        let body = pdf[offset..].strip_prefix(&format!("{number} 0 obj\n")).unwrap();
        body.split_once("\nendobj\n").unwrap().0
    }

    #[test]
    fn the_notice_is_a_pdf_that_hangs_together() {
        let pdf = notice_pdf(&["Notice (1\\2)", "Ünïcode – 12 €", "漢字"]);
        let pdf = String::from_utf8(pdf).unwrap();
        assert!(pdf.starts_with("%PDF-1.4\n") && pdf.ends_with("\n%%EOF\n") && pdf.is_ascii());
        assert!(pdf.contains("trailer\n<< /Size 6 /Root 1 0 R >>\n"));
        assert!(object(&pdf, 1).contains("/Type /Catalog /Pages 2 0 R"));
        assert!(object(&pdf, 2).contains("/Type /Pages /Kids [3 0 R] /Count 1"));
        assert!(object(&pdf, 3).contains("/Contents 4 0 R") && object(&pdf, 3).contains("/F1 5 0 R"));
        assert!(object(&pdf, 5).contains("/BaseFont /Helvetica"));
        let (dictionary, stream) = object(&pdf, 4).split_once("\nstream\n").unwrap();
        let text = stream.strip_suffix("endstream").unwrap();
        assert_eq!(dictionary, format!("<< /Length {} >>", text.len()));
        assert!(text.starts_with("BT\n") && text.ends_with("ET\n"));
        assert!(text.contains("(Notice \\(1\\\\2\\)) Tj"), "{text}");
        assert!(text.contains("(\\334n\\357code \\226 12 \\200) Tj") && text.contains("(??) Tj"), "{text}");
    }

    #[test]
    fn many_lines_stay_on_the_page() {
        let pdf = String::from_utf8(notice_pdf(&["line"; 200])).unwrap();
        let text = object(&pdf, 4);
        assert_eq!(text.matches("(line) Tj T*").count(), 200);
        let leading: f64 = text.split_once("BT\n").unwrap().1.split_once(" TL").unwrap().0.parse().unwrap();
        assert!(leading * 201.0 < 792.0);
    }

    #[test]
    fn the_qr_code_survives_as_a_png() {
        let url = "https://tax.example/notice/A-0001-000042";
        let file = qr_png(url).unwrap();
        let mut decoder = png::Decoder::new(std::io::Cursor::new(&file));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let code = QrCode::new(url).unwrap();
        let side = (code.width() + 2 * QUIET) * 8;
        assert_eq!((info.width as usize, info.height as usize, info.line_size), (side, side, side));
        for (at, pixel) in pixels.iter().enumerate() {
            let module = |pixel: usize| (pixel / 8).checked_sub(QUIET).filter(|m| *m < code.width());
            let dark = match (module(at % side), module(at / side)) {
                (Some(x), Some(y)) => code[(x, y)] == Color::Dark,
                _ => false,
            };
            assert_eq!(*pixel, if dark { 0 } else { 255 }, "pixel {at}");
        }
    }

    #[test]
    fn too_long_a_text_is_refused() {
        assert!(matches!(qr_png(&"x".repeat(3_000)), Err(AssetError::Qr(_))));
    }
}
