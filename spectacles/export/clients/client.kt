// Answers for photos on Android, with com.microsoft.onnxruntime:onnxruntime-android. Not run here.
import ai.onnxruntime.*
import android.graphics.ImageDecoder
import java.nio.ByteBuffer

class Client(model: ByteArray, private val classes: List<String>) { // onnx_photo-fp32.onnx, and the lines of labels.txt
    private val environment = OrtEnvironment.getEnvironment()
    private val session = environment.createSession(model)

    fun probabilities(photo: ImageDecoder.Source): Map<String, Float> {
        val upright = ImageDecoder.decodeBitmap(photo) { it, _, _ -> it.allocator = ImageDecoder.ALLOCATOR_SOFTWARE }
        val (width, height) = upright.width to upright.height
        val pixels = IntArray(width * height).also { upright.getPixels(it, 0, width, 0, 0, width, height) }
        val rgb = ByteBuffer.wrap(ByteArray(3 * pixels.size) { (pixels[it / 3] shr (16 - 8 * (it % 3))).toByte() })
        val shape = longArrayOf(height.toLong(), width.toLong(), 3)
        val answers = session.run(mapOf("photo" to OnnxTensor.createTensor(environment, rgb, shape, OnnxJavaType.UINT8)))
        val values = answers["probabilities"].get().value as Array<FloatArray>
        return classes.zip(values[0].asIterable()).toMap()
    }
}
