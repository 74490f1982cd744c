// Answers for photos, with Microsoft.ML.OnnxRuntime and Magick.NET-Q8-AnyCPU: dotnet run photo.jpg ... Not run here.
using System.Text.Json;
using ImageMagick;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

using var session = new InferenceSession("onnx_photo-fp32.onnx");
var classes = JsonSerializer.Deserialize<string[]>(session.ModelMetadata.CustomMetadataMap["classes"])!;
foreach (var file in args)
{
    using var image = new MagickImage(file) { BackgroundColor = MagickColors.White, ColorSpace = ColorSpace.sRGB };
    image.AutoOrient();
    image.Alpha(AlphaOption.Remove);
    var rgb = image.GetPixels().ToByteArray(PixelMapping.RGB)!;
    var photo = new DenseTensor<byte>(rgb, new[] { (int)image.Height, (int)image.Width, 3 });
    using var outputs = session.Run(new[] { NamedOnnxValue.CreateFromTensor("photo", photo) });
    var values = outputs.First(output => output.Name == "probabilities").AsEnumerable<float>();
    var probabilities = classes.Zip(values).ToDictionary(pair => pair.First, pair => pair.Second);
    Console.WriteLine(JsonSerializer.Serialize(new { file, probabilities }));
}
