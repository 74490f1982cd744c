// Answers for photos, with microsoft/onnxruntime-swift-package-manager: swift run Client photo.jpg ... Not run here.
import CoreImage
import OnnxRuntimeBindings

let environment = try ORTEnv(loggingLevel: .warning), sRGB = CGColorSpace(name: CGColorSpace.sRGB)
let session = try ORTSession(env: environment, modelPath: "onnx_photo-fp32.onnx", sessionOptions: nil)
let classes = try String(contentsOfFile: "labels.txt", encoding: .utf8).split(separator: "\n").map(String.init)
for name in CommandLine.arguments.dropFirst() {
    let upright = CIImage(contentsOf: URL(fileURLWithPath: name), options: [.applyOrientationProperty: true])!
    let image = upright.composited(over: CIImage(color: .white)).cropped(to: upright.extent)
    let (width, height) = (Int(image.extent.width), Int(image.extent.height))
    var rgba = [UInt8](repeating: 0, count: 4 * width * height)
    CIContext().render(image, toBitmap: &rgba, rowBytes: 4 * width, bounds: image.extent, format: .RGBA8, colorSpace: sRGB)
    let rgb = NSMutableData(data: Data(rgba.indices.filter { $0 % 4 < 3 }.map { rgba[$0] }))
    let photo = try ORTValue(tensorData: rgb, elementType: .uInt8, shape: [height as NSNumber, width as NSNumber, 3])
    let answers = try session.run(withInputs: ["photo": photo], outputNames: ["probabilities"], runOptions: nil)
    let values = try (answers["probabilities"]!.tensorData() as Data).withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    print(name, Dictionary(uniqueKeysWithValues: zip(classes, values)))
}
